"""Observing the linear maps of a block while gradients flow back through it.

Every `linear` whose weight is a parameter of the block is found by the storage of that weight, so maps of
stacked experts, which are slices of one parameter, are found like any other.

Dimension letters as in statistics.py: T tokens, N rows, K columns of a weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fewbits.calibration.products import are_short, linear_product, product
from fewbits.language_model.linear_calls import LinearCalls
from fewbits.language_model.transformers_model import storage_address

# Little more than half of a symmetric product is computed, in this many column panels of at least this size:
# narrower ones cost more in passes over the inputs than they save.
_PANELS, _PANEL = 8, 96
# Rows that are mirrored at a time.
_MIRRORED = 1024
# Sizes of the blocks that share a scale when llama.cpp rounds activations.
PEAK_BLOCKS = (32, 256)
# Rows of a map whose gradients are correlated with one another, at most: their products are squares of it.
_OUTPUTS = 2048
# Every so manieth token is kept as it is, until there are so many.
_SAMPLED, _SAMPLES = 101, 256


@dataclass(frozen=True)
class LinearMap:
    """A matrix of a block: a parameter, or expert `expert` of a stacked parameter [E, N, K]."""

    name: str
    shape: tuple[int, int]

    @property
    def bytes(self) -> int:
        """Memory of its second moments, of inputs and outputs, for use and for checking."""
        return 8 * (self.shape[1] ** 2 + self.shape[0] * output_block(self.shape[0]))


def linear_maps(block: nn.Module, prefix: str) -> list[LinearMap]:
    """Every matrix among the parameters of a block, in order: ``NAME``, of stacked experts ``NAME#e``."""
    maps = []
    for name, parameter in block.named_parameters():
        full, shape = f"{prefix}.{name}", tuple(parameter.shape)
        if len(shape) == 2:
            maps.append(LinearMap(full, (shape[0], shape[1])))
        elif len(shape) == 3:
            maps += [LinearMap(f"{full}#{e}", (shape[1], shape[2])) for e in range(shape[0])]
    return maps


def output_block(rows: int) -> int:
    """Neighbouring rows whose gradients are correlated with one another: all of them, or a divisor of `rows`."""
    if rows <= _OUTPUTS:
        return rows
    return max(size for size in range(1, _OUTPUTS + 1) if rows % size == 0)


class Sums:
    """Of one linear map, over tokens t; B rows are a block of outputs.

    Attributes:
        second_moment: sum of w_t x_t x_tᵀ with w_t the mean over rows of g_tn², float32 [K, K], its upper
            triangle.
        held_out: the same over held-out tokens.
        outputs: sum of g_t g_tᵀ within blocks of outputs, float32 [N / B, B, B], its upper triangles.
        held_out_outputs: the same over held-out tokens.
        peaks: of the inputs, without held-out tokens.
        tokens: how many are in `second_moment` and `rows`.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self.second_moment = torch.zeros(columns, columns)
        self.held_out = torch.zeros(columns, columns)
        block = output_block(rows)
        self.outputs = torch.zeros(rows // block, block, block)
        self.held_out_outputs = torch.zeros_like(self.outputs)
        self.peaks = Peaks(columns)
        self.tokens = 0
        self.held_out_tokens = 0

    def add(self, x: Tensor, g: Tensor, held_out: bool) -> None:
        """Inputs float32 [T, K] and gradients at the outputs float32 [T, N] of T tokens."""
        weights = g.square().mean(1)
        add_weighted_product(self.held_out if held_out else self.second_moment, x, weights)
        outputs = self.held_out_outputs if held_out else self.outputs
        for total, part in zip(outputs, torch.split(g, outputs.shape[1], dim=1), strict=True):
            add_product(total, part)
        if held_out:
            self.held_out_tokens += len(x)
        else:
            self.tokens += len(x)
            self.peaks.add(x, weights)

    @property
    def rows(self) -> Tensor:
        """Sum of g_t², float32 [N], without held-out tokens."""
        return torch.diagonal(self.outputs, dim1=1, dim2=2).reshape(-1)


class Peaks:
    """How large inputs get within the blocks in which runtimes round them: what that rounding costs follows.

    And some of the inputs, to tell how that changes when columns are rescaled.

    Attributes:
        sums: block size b -> sum of w_t max over the block of x_t², float32 [K / b]; sizes that divide K.
        samples: √w_t x_t of some tokens, float32 [n, K] each.
        roots: their √w_t, float32 [n] each.
        largest: magnitude of each input, float32 [K].
    """

    def __init__(self, columns: int) -> None:
        self.samples: list[Tensor] = []
        self.roots: list[Tensor] = []
        self.largest = torch.zeros(columns)
        self._tokens = 0
        self.sums = {size: torch.zeros(columns // size) for size in PEAK_BLOCKS if columns % size == 0}

    def add(self, x: Tensor, weights: Tensor) -> None:
        """Inputs float32 [T, K] and weights float32 [T]."""
        room = _SAMPLES - sum(map(len, self.samples))
        chosen = list(range(-self._tokens % _SAMPLED, len(x), _SAMPLED)[:room])
        if chosen:
            self.roots.append(weights[chosen].sqrt())
            self.samples.append(x[chosen] * self.roots[-1][:, None])
        self._tokens += len(x)
        self.largest = torch.maximum(self.largest, x.abs().amax(0))
        size, peaks = 1, x
        for larger, total in self.sums.items():  # rising, each a multiple of the one before
            peaks = peaks.reshape(len(x), -1, larger // size).abs().amax(2)
            size = larger
            total += weights @ peaks.square()

    @property
    def sample(self) -> npt.NDArray[np.float16]:
        """All samples, the largest number about 1: float16 [n, K]; no rows where nothing was seen."""
        if not self.samples:
            return np.empty((0, 0), np.float16)
        return (torch.cat(self.samples) / self._norm).to(torch.float16).numpy()

    @property
    def restore(self) -> npt.NDArray[np.float32]:
        """What samples are multiplied with to be x_t, float32 [n]."""
        if not self.samples:
            return np.empty(0, np.float32)
        roots = torch.cat(self.roots)
        return torch.where(roots > 0, self._norm / roots, 0.0).numpy()

    @property
    def _norm(self) -> Tensor:
        return torch.stack([sample.abs().max() for sample in self.samples]).max().clamp_min(1e-30)


def add_weighted_product(total: Tensor, x: Tensor, weights: Tensor) -> None:
    """Add the sum of w_t x_t x_tᵀ to float32 [K, K], of which only the upper triangle counts.

    x is [T, K], weights [T] positive.
    """
    add_product(total, x * weights.sqrt()[:, None])


def add_product(total: Tensor, x: Tensor) -> None:
    """Add xᵀ x of x [T, K] to float32 [K, K], of which only the upper triangle counts."""
    width = x.shape[1]
    step = max(_PANEL, -(-width // _PANELS))
    short = are_short(width)
    if short:
        x = x.bfloat16()
    for start in range(0, width, step):
        part = total[start : min(start + step, width), start:]
        left, right = x[:, start : start + len(part)].T, x[:, start:]
        if short:
            part += left @ right
        else:
            part.addmm_(left, right)


def mirrored(total: Tensor) -> Tensor:
    """The matrices [..., K, K] themselves, upper triangles mirrored in place: one may be as large as a weight."""
    width = total.shape[-1]
    for start in range(0, width, _MIRRORED):
        stop = min(start + _MIRRORED, width)
        corner = total[..., start:stop, start:stop]
        corner.copy_(torch.triu(corner) + torch.triu(corner, 1).mT)
        total[..., stop:, start:stop] = total[..., start:stop, stop:].mT
    return total


class MapNames:
    """The names of a block's linear maps, by the storage of their weights."""

    def __init__(self, block: nn.Module, prefix: str) -> None:
        self._parameters: Mapping[int, tuple[str, Tensor]] = {
            storage_address(parameter): (f"{prefix}.{name}", parameter)
            for name, parameter in block.named_parameters()
        }

    def of(self, weight: Tensor) -> str:
        """``NAME``, of stacked experts ``NAME#e``; empty for a weight that is none of the block's."""
        name, parameter = self._parameters.get(storage_address(weight), ("", weight))
        if parameter.dim() == 3:
            return f"{name}#{(weight.storage_offset() - parameter.storage_offset()) // parameter.stride(0)}"
        return name


class Observation(LinearCalls):
    """Within this context the linear maps of a block add to `sums` when gradients flow back through them.

    Maps that `wanted` doesn't name add nothing, but are computed in the same way: which maps are gathered
    together must not change what flows back.
    """

    def __init__(self, block: nn.Module, prefix: str, wanted: Iterable[LinearMap]) -> None:
        super().__init__()
        self._wanted = {linear_map.name for linear_map in wanted}
        self._shapes = {m.name: m.shape for m in linear_maps(block, prefix)}
        self._names = MapNames(block, prefix)
        self.sums: dict[str, Sums] = {}
        self.held_out = False

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The same numbers, whose gradient is observed if there is one and the weight is the block's."""
        name = self._names.of(weight) if torch.is_grad_enabled() else ""
        if name not in self._shapes:
            return linear(x, weight, bias)
        return cast("Tensor", _Observed.apply(x, weight, bias, self._sums(name), self.held_out))  # type: ignore[no-untyped-call]

    def _sums(self, name: str) -> Sums | None:
        if name in self._wanted and name not in self.sums:
            self.sums[name] = Sums(*self._shapes[name])
        return self.sums.get(name)


class _Observed(torch.autograd.Function):
    """x Wᵀ + bias, whose backward pass hands x and the gradient at its output to the sums."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, sums: Sums | None, held_out: bool
    ) -> Tensor:
        """[..., K] and [N, K] to [..., N]."""
        ctx.save_for_backward(x, weight)
        ctx.sums, ctx.held_out = sums, held_out
        return linear_product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        """The gradient at x; that of the weight is never formed."""
        x, weight = ctx.saved_tensors
        (g,) = gradients
        if ctx.sums is not None and x.numel():
            ctx.sums.add(x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1]), ctx.held_out)
        return product(g, weight), None, None, None, None
