"""The end of the model: probes of its predictions, their gradient, and the head's own statistics.

The logits z = E h of a token have a Fisher information that is known exactly, F = diag(p) - p pᵀ, so nothing
is sampled for the head's own statistics: w_t = (1 - sum p²) / V, and row_importance ∝ E[p_v (1 - p_v)].

What flows back is a random vector s ∘ √p - p (s · √p) with signs s, whose covariance is F as well. The gradient of a
drawn label has that covariance too, but most labels are the likely one and say little, and few say very much.

Dimension letters: T tokens, V vocabulary, D width of the hidden state.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewbits.calibration.blocks import BlockwiseModel
from fewbits.calibration.linear_maps import Peaks, add_weighted_product
from fewbits.calibration.products import product

# Logits held at once: 2^24 are 64 MB, and a few such arrays live at a time.
_LOGITS = 1 << 24
# Of them as many as are passed over again and again: 2^19 are 2 MB, which a core's own cache holds.
_CACHED = 1 << 19
# Rows of two tables of random signs, whose products in pairs are the signs of a token.
_SIGNS = 64


@dataclass
class HeadSums:
    """Over tokens t: sums of w_t h_t h_tᵀ float32 [D, D], upper triangles, of p (1 - p) float32 [V], and peaks."""

    second_moment: Tensor
    held_out: Tensor
    rows: Tensor
    peaks: Peaks
    tokens: int = 0


class Head:
    """The head of a model, its weight in memory.

    Attributes:
        sums: of the head.
        predicted: sum of p over tokens that aren't held out, float32 [V].
    """

    def __init__(self, model: BlockwiseModel, seed: int) -> None:
        self._model = model
        self._weight = model.head_weight()
        self._bias = model.head_bias()
        vocabulary, width = self._weight.shape
        square = torch.zeros(width, width)
        self.sums = HeadSums(square, square.clone(), torch.zeros(vocabulary), Peaks(width))
        self.predicted = torch.zeros(self._weight.shape[0])
        probe = torch.linspace(-50, 50, 64).reshape(1, 1, 64)
        self._plain = bool(torch.equal(model.logits_of(probe), probe))
        generator = torch.Generator().manual_seed(seed)
        self._signs = random_signs(2, _SIGNS, vocabulary, generator=generator)
        self._generator = generator

    def gradient(self, hidden: Tensor, held_out: bool) -> Tensor:
        """Add T tokens to the sums.

        Args:
            hidden: after the final norm, float32 [T, D].
            held_out: whether the tokens are for checking only.

        Returns:
            What a random error of the logits does to `hidden`, float32 [T, D]: E[g gᵀ] is the Fisher information.
        """
        step = max(1, _LOGITS // len(self._weight))
        pieces = [
            self._gradient(hidden[start : start + step], held_out) for start in range(0, len(hidden), step)
        ]
        return torch.cat(pieces)

    def _gradient(self, hidden: Tensor, held_out: bool) -> Tensor:
        """Of tokens whose logits fit in memory; a few at a time where numbers are only passed over."""
        numbers = product(hidden, self._weight.T)
        pairs = torch.randint(_SIGNS, (2, len(hidden)), generator=self._generator)
        step = max(1, _CACHED // numbers.shape[1])
        weights = torch.cat(
            [
                self._probe(numbers[start : start + step], pairs[:, start : start + step], held_out)
                for start in range(0, len(hidden), step)
            ]
        )
        sums = self.sums
        add_weighted_product(sums.held_out if held_out else sums.second_moment, hidden, weights)
        if not held_out:
            sums.tokens += len(hidden)
            sums.peaks.add(hidden, weights)
        return product(numbers, self._weight)

    def _probe(self, products: Tensor, pairs: Tensor, held_out: bool) -> Tensor:
        """Replace products with the head's rows [T, V] by random vectors of covariance diag(p) - p pᵀ.

        Returns:
            w_t, float32 [T].
        """
        p, slope = self._predictions(products)
        weights = self._add(p, slope, held_out)
        probe = torch.sqrt(p, out=products).mul_(self._signs[0][pairs[0]]).mul_(self._signs[1][pairs[1]])
        mean = _row_sums(probe)  # s · √p
        probe.sub_(p.mul_(mean[:, None]))
        if slope is not None:
            probe.mul_(slope)
        return weights

    def _predictions(self, products: Tensor) -> tuple[Tensor, Tensor | None]:
        """Probabilities float32 [T, V], and the logits' derivative by `products` unless it is 1."""
        if self._bias is not None:
            products += self._bias
        if self._plain:
            return torch.softmax(products, -1), None
        with torch.enable_grad():
            leaf = products.detach().clone().requires_grad_()
            logits = self._model.logits_of(leaf[None])[0]
            (slope,) = torch.autograd.grad(logits.sum(), leaf)
        return torch.softmax(logits.detach(), -1), slope

    def _add(self, p: Tensor, slope: Tensor | None, held_out: bool) -> Tensor:
        """Add probabilities [T, V] to the sums over rows; w_t, float32 [T]."""
        squares = p.square()
        if slope is None:
            weights = 1 - _row_sums(squares)
        else:
            squares = (p - squares) * slope.square()
            weights = _row_sums(squares)
        if not held_out:
            seen, of_squares = _column_sums(p), _column_sums(squares)
            self.sums.rows += of_squares if slope is not None else (seen - of_squares).clamp_min(0)
            self.predicted += seen
        return weights.clamp_min(0) / p.shape[1]


def _row_sums(numbers: Tensor) -> Tensor:
    return numbers @ numbers.new_ones(numbers.shape[1])


def _column_sums(numbers: Tensor) -> Tensor:
    return numbers.new_ones(len(numbers)) @ numbers


def random_signs(*shape: int, generator: torch.Generator) -> Tensor:
    """Numbers 1 and -1, float32."""
    bits = torch.randint(2, shape, generator=generator, dtype=torch.int8)
    return (2 * bits - 1).to(torch.float32)
