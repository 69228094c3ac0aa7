"""The end of the model: labels drawn from its predictions, their gradient, and the head's own statistics.

The logits z = E h of a token have a Fisher information that is known exactly, diag(p) - p pᵀ, so nothing
is sampled for the head's own statistics: w_t = (1 - sum p²) / V, and row_importance ∝ E[p_v (1 - p_v)].

Dimension letters: T tokens, V vocabulary, D width of the hidden state.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewbits.calibration.blocks import BlockwiseModel
from fewbits.calibration.linear_maps import Sums, add_weighted_product

# Logits held at once: 2^24 in bfloat16 are 32 MB, and a few such arrays live at a time.
_LOGITS = 1 << 24
# Labels that are drawn together at first.
_GROUP = 64


class Head:
    """The head of a model, its weight in memory.

    Attributes:
        sums: of the head.
        predicted: sum of p over tokens that aren't held out, float32 [V].
    """

    def __init__(self, model: BlockwiseModel) -> None:
        self._model = model
        self._weight = model.head_weight()
        self._bias = model.head_bias()
        self.sums = Sums(*self._weight.shape)
        self.predicted = torch.zeros(self._weight.shape[0])
        probe = torch.linspace(-50, 50, 64).reshape(1, 1, 64)
        self._plain = bool(torch.equal(model.logits_of(probe), probe))

    def gradient(self, hidden: Tensor, generator: torch.Generator, held_out: bool) -> Tensor:
        """Add T tokens to the sums.

        Args:
            hidden: after the final norm, bfloat16 [T, D].
            generator: draws the labels.
            held_out: whether the tokens are for checking only.

        Returns:
            The gradient of the loss of drawn labels with respect to `hidden`, bfloat16 [T, D].
        """
        step = max(1, _LOGITS // len(self._weight))
        pieces = [
            self._gradient(hidden[start : start + step], generator, held_out)
            for start in range(0, len(hidden), step)
        ]
        return torch.cat(pieces)

    def _gradient(self, hidden: Tensor, generator: torch.Generator, held_out: bool) -> Tensor:
        p, slope = self._predictions(hidden @ self._weight.T)
        labels = draw(p, generator)
        self._add(hidden, p, slope, held_out)
        p.scatter_add_(1, labels, torch.full(labels.shape, -1.0, dtype=p.dtype))
        if slope is not None:
            p *= slope
        return p @ self._weight

    def _predictions(self, products: Tensor) -> tuple[Tensor, Tensor | None]:
        """Probabilities bfloat16 [T, V], and the logits' derivative by `products` unless it is 1."""
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


def draw(p: Tensor, generator: torch.Generator) -> Tensor:
    """A label for each row of probabilities [T, V], int64 [T, 1].

    A group of neighbouring labels is drawn first, then one of the group: the probabilities are read once,
    where torch.multinomial draws a random number for every entry.
    """
    padding = -p.shape[1] % _GROUP
    grouped = torch.nn.functional.pad(p, (0, padding)).reshape(len(p), -1, _GROUP)
    group = _draw(grouped.sum(-1).float(), generator)
    inside = grouped.gather(1, group[:, :, None].expand(-1, -1, _GROUP))[:, 0]
    return (group * _GROUP + _draw(inside.float(), generator)).clamp_max(p.shape[1] - 1)


def _draw(shares: Tensor, generator: torch.Generator) -> Tensor:
    cumulative = shares.cumsum(1)
    threshold = torch.rand(len(shares), 1, generator=generator) * cumulative[:, -1:]
    labels: Tensor = torch.searchsorted(cumulative, threshold, right=True)
    return labels.clamp_max(shares.shape[1] - 1)
