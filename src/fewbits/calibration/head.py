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

# Logits held at once: 2^24 are 64 MB, and a few such arrays live at a time.
_LOGITS = 1 << 24
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
        p, slope = self._predictions(hidden @ self._weight.T)
        self._add(hidden, p, slope, held_out)
        probe = self._probe(p)
        if slope is not None:
            probe *= slope
        return probe @ self._weight

    def _probe(self, p: Tensor) -> Tensor:
        """Random vectors of covariance diag(p) - p pᵀ, float32 [T, V]."""
        pair = torch.randint(_SIGNS, (2, len(p)), generator=self._generator)
        probe = p.sqrt().mul_(self._signs[0][pair[0]]).mul_(self._signs[1][pair[1]])
        # Accumulated in float32, as a matrix product: s · √p.
        mean = _row_sums(probe).to(p.dtype)
        return probe.sub_(p * mean[:, None])

    def _predictions(self, products: Tensor) -> tuple[Tensor, Tensor | None]:
        """Probabilities float32 [T, V], and the logits' derivative by `products` unless it is 1."""
        if self._bias is not None:
            products += self._bias.to(products.dtype)
        if self._plain:
            return torch.softmax(products, -1), None
        with torch.enable_grad():
            leaf = products.float().requires_grad_()
            logits = self._model.logits_of(leaf[None])[0]
            (slope,) = torch.autograd.grad(logits.sum(), leaf)
        return torch.softmax(logits.detach(), -1).to(products.dtype), slope.to(products.dtype)

    def _add(self, hidden: Tensor, p: Tensor, slope: Tensor | None, held_out: bool) -> None:
        sums = self.sums
        squares = p.square()
        if slope is None:
            weights = 1 - _row_sums(squares)
        else:
            squares = (p - squares) * slope.square()
            weights = _row_sums(squares)
        weights = weights.clamp_min(0) / p.shape[1]
        add_weighted_product(sums.held_out if held_out else sums.second_moment, hidden, weights)
        if held_out:
            return
        sums.tokens += len(p)
        sums.peaks.add(hidden, weights)
        seen = _column_sums(p)
        sums.rows += (
            _column_sums(squares) if slope is not None else (seen - _column_sums(squares)).clamp_min(0)
        )
        self.predicted += seen


def _row_sums(numbers: Tensor) -> Tensor:
    """Float32 sums along the last dimension, as a matrix product: nothing is converted beforehand."""
    return (numbers @ numbers.new_ones(numbers.shape[1], 1))[:, 0].float()


def _column_sums(numbers: Tensor) -> Tensor:
    return (numbers.new_ones(1, len(numbers)) @ numbers)[0].float()


def random_signs(*shape: int, generator: torch.Generator) -> Tensor:
    """Numbers 1 and -1, float32."""
    bits = torch.randint(2, shape, generator=generator, dtype=torch.int8)
    return (2 * bits - 1).to(torch.float32)
