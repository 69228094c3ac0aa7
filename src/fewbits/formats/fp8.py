"""FP8 with a float32 scale per row (channel) or per tensor: E4M3 and E5M2.

Names: ``FP8_{E4M3|E5M2}_{CHANNEL|TENSOR}``.

    value = FP8 number * scale

Layout: compressed-tensors' ``float-quantized``. It has E4M3 only; E5M2 has the same parts with its own dtype.
The scale is float32 because runtimes apply it to float32 sums. Blocks of 128 x 128: `fp8_block`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from math import prod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fewbits.errors import FormatError
from fewbits.formats.format import Codes, Floats, LinearPart, Params, Parts, QTensor
from fewbits.formats.minifloat import BFLOAT16_MAX, E4M3, E5M2, Minifloat
from fewbits.formats.numbers import FloatNumbers, Numbers, UnlikeError
from fewbits.formats.registry import register_family
from fewbits.formats.scale_search import (
    ScaleSearch,
    denormalise,
    normalise,
    relative_importance,
    storable,
    tiles,
)
from fewbits.formats.tensor_scope import TENSOR, TensorScope

# A floating-point grid repeats itself with every factor of 2, so one octave of scales is all there is to
# try; below 1 the largest weights are clipped.
_FACTORS = np.array([0.9, 0.95, *np.exp2(np.arange(1, 8) / 8)], np.float32)

Scope = Literal["CHANNEL", "TENSOR"]


@dataclass(frozen=True)
class FP8Params(Params):
    """Scale float32 [R], positive."""

    scale: Floats


class FP8Format(TensorScope[FP8Params]):
    """FP8 numbers times one scale for each row or for the tensor.

    Attributes:
        grid: the FP8 type.
        scope: what a scale is for.
    """

    params_type = FP8Params
    block = 0
    bits = Fraction(8)

    def __init__(self, grid: Minifloat, scope: Scope) -> None:
        self.grid = grid
        self.scope = scope
        self.name = f"FP8_{grid.name}_{scope}"
        self.fallback = None
        self.part_dtypes = {"weight": f"F8_{grid.name}"}
        self.tensor_parts = ("weight_scale",) if scope == TENSOR else ()

    def _fit(self, weight: Floats, importance: Floats | None) -> FP8Params:
        grid = self.grid
        out = np.empty(weight.shape[0], np.float32)
        for part in tiles(weight.shape):
            x, exponent = normalise(weight[part])
            peak = np.abs(x).max(axis=1)
            search = ScaleSearch(
                x,
                relative_importance(importance, part, weight.shape),
                lambda scaled, _: grid.nearest(scaled),
                lambda scale: scale,
            )
            plain = np.where(peak > 0, peak / np.float32(grid.maximum), 1).astype(np.float32)
            search.consider(plain)
            for factor in _FACTORS:
                search.consider(plain * factor)
            search.refine()
            largest = BFLOAT16_MAX / grid.maximum
            out[part] = np.where(peak > 0, denormalise(search.scale, exponent, largest), 1)
        return FP8Params(out)

    def round(self, weight: Floats, params: FP8Params, column: int = 0) -> Codes:
        """FP8 codes of ``weight / scale``, ties to even, saturating: float32 [R, S] -> uint8 [R, S]."""
        del column
        with np.errstate(over="ignore"):
            return self.grid.codes(weight / params.scale[:, None])

    def decode(self, codes: Codes, params: FP8Params, column: int = 0) -> Floats:
        """FP8 number times scale: uint8 [R, S] -> float32 [R, S]."""
        del column
        return self.grid.values[codes] * params.scale[:, None]

    def numbers(self, tensor: QTensor) -> FloatNumbers:
        """See `Format.numbers`."""
        params = tensor.params
        assert isinstance(params, FP8Params)
        return FloatNumbers(self.grid, tensor.shape[1], tensor.codes, params.scale.reshape(-1, 1))

    def take_over(self, numbers: Numbers) -> QTensor:
        """See `Format.take_over`."""
        if not isinstance(numbers, FloatNumbers) or numbers.grid is not self.grid:
            raise UnlikeError(f"its numbers aren't {self.grid.name}")
        if self.scope == TENSOR:
            raise FormatError("it has scales of rows")
        return QTensor(self, numbers.codes.shape, numbers.codes, FP8Params(numbers.step.reshape(-1)))

    def linear_parts(self) -> tuple[LinearPart[FP8Params], ...]:
        """The scale of a channel; that of a tensor isn't one row's to change."""
        if self.scope == TENSOR:
            return ()
        largest = BFLOAT16_MAX / self.grid.maximum
        return (
            LinearPart(
                slice(None),
                lambda params: (params.scale,),
                lambda codes, _: (self.grid.values[codes],),
                lambda _, scales: FP8Params(storable(scales[0], largest)),
            ),
        )

    def pack(self, codes: Codes, params: FP8Params) -> Parts:
        """``weight`` FP8 as uint8 [N, K]; ``weight_scale`` float32 [N, 1], or [1] for the tensor."""
        scale = params.scale[:1] if self.scope == TENSOR else params.scale[:, None]
        return {"weight": codes, "weight_scale": np.ascontiguousarray(scale)}

    def unpack(
        self, parts: Mapping[str, npt.NDArray[Any]], shape: tuple[int, int]
    ) -> tuple[Codes, FP8Params]:
        """The inverse of `pack`."""
        scale = np.broadcast_to(parts["weight_scale"].reshape(-1), (shape[0],))
        return parts["weight"].view(np.uint8), FP8Params(scale)

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Exact bytes of codes and scales."""
        self.block_of(shape[-1])
        rows = prod(shape[:-1])
        return rows * shape[-1] + 4 * (1 if self.scope == TENSOR else rows)


@cache
def _format(grid: Minifloat, scope: Scope) -> FP8Format:
    return FP8Format(grid, scope)


def _from_name(match: re.Match[str]) -> FP8Format:
    grid = E4M3 if match["grid"] == "E4M3" else E5M2
    return _format(grid, "CHANNEL" if match["scope"] == "CHANNEL" else "TENSOR")


register_family(
    r"FP8_(?P<grid>E4M3|E5M2)_(?P<scope>CHANNEL|TENSOR)", _from_name, "FP8_{E4M3|E5M2}_{CHANNEL|TENSOR}"
)
