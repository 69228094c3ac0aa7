"""NF4: a table of 16 quantiles of the normal distribution and a float32 scale per 64 columns.

    value = table[code] * absmax

As bitsandbytes stores it without double quantization. Source: QLoRA, arXiv 2305.14314, appendix E (the
table), and the bitsandbytes package (layout, rounding). Two codes in a byte:

    byte:  even column in the high 4 bits, odd column in the low 4 bits

The scale is called absmax after plain rounding; `fit` may choose a smaller one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from fewbits.formats.format import Codes, Floats, Format, LinearPart, Params, Parts
from fewbits.formats.minifloat import BFLOAT16_MAX
from fewbits.formats.registry import register
from fewbits.formats.scale_search import (
    ScaleSearch,
    denormalise,
    normalise,
    relative_importance,
    storable,
    tiles,
)

# Each number is the float32 nearest to the paper's.
TABLE = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)

# A number gets the code of how many of these are below it.
_BOUNDS = (TABLE[:-1] + TABLE[1:]) / np.float32(2)

# Rounding by table: -1 … 1 is cut into cells so narrow that none holds two bounds. A number's cell says how
# many bounds lie in earlier cells, and one comparison settles the bound in its own.
_CELLS = 256

_FACTORS = np.linspace(0.6, 1.05, 10, dtype=np.float32)


def _cell(x: Floats) -> npt.NDArray[np.uint8]:
    """Cell of numbers in -1 … 1; monotonic, which is all that rounding by table relies on."""
    return ((x + np.float32(1)) * np.float32((_CELLS - 1) / 2)).astype(np.uint8)


_BOUND_CELLS = _cell(_BOUNDS)
_FIRST_CODE = np.searchsorted(_BOUND_CELLS, np.arange(_CELLS), side="left").astype(np.uint8)
_CELL_BOUND = np.full(_CELLS, np.inf, np.float32)
_CELL_BOUND[_BOUND_CELLS] = _BOUNDS


def nearest_codes(x: Floats) -> Codes:
    """Codes of the nearest numbers in `TABLE`, ties to the lower: float32, any shape -> uint8, same shape."""
    x = np.minimum(np.maximum(x, np.float32(-1)), np.float32(1))
    cell = _cell(x)
    codes: Codes = _FIRST_CODE[cell]
    codes += (x > _CELL_BOUND[cell]).view(np.uint8)
    return codes


@dataclass(frozen=True)
class NF4Params(Params):
    """Scale float32 [R], positive."""

    absmax: Floats


class NF4Format(Format[NF4Params]):
    """NF4 in blocks of 64."""

    params_type = NF4Params
    name = "NF4"
    block = 64
    bits = Fraction(9, 2)
    fallback = None
    tensor_parts = ("weight.quant_map",)

    def fit(self, weight: Floats, importance: Floats | None = None) -> NF4Params:
        """Scales by candidate search; see `Format.fit`."""
        out = np.empty(weight.shape[0], np.float32)
        for part in tiles(weight.shape):
            x, exponent = normalise(weight[part])
            peak = np.abs(x).max(axis=1)
            search = ScaleSearch(
                x,
                relative_importance(importance, part, weight.shape),
                lambda scaled, _: TABLE[nearest_codes(scaled)],
                lambda scale: scale,
            )
            search.consider(np.where(peak > 0, peak, 1).astype(np.float32))
            plain = search.scale
            for factor in _FACTORS:
                search.consider(plain * factor)
            search.refine()
            out[part] = np.where(peak > 0, denormalise(search.scale, exponent, BFLOAT16_MAX), 1)
        return NF4Params(out)

    def round(self, weight: Floats, params: NF4Params, column: int = 0) -> Codes:
        """Nearest codes: float32 [R, S] -> uint8 [R, S], 0 … 15."""
        del column
        # Times the reciprocal, as bitsandbytes does: the last bit decides ties. It is finite because
        # no scale is below 2**-126.
        with np.errstate(over="ignore"):
            return nearest_codes(weight * (np.float32(1) / params.absmax)[:, None])

    def decode(self, codes: Codes, params: NF4Params, column: int = 0) -> Floats:
        """``table[code] * absmax``: uint8 [R, S] -> float32 [R, S]."""
        del column
        return TABLE[codes] * params.absmax[:, None]

    def linear_parts(self) -> tuple[LinearPart[NF4Params], ...]:
        """The scale."""
        return (
            LinearPart(
                slice(0, self.block),
                lambda params: (params.absmax,),
                lambda codes, _: (TABLE[codes],),
                lambda _, scales: NF4Params(storable(scales[0], BFLOAT16_MAX)),
            ),
        )

    def pack(self, codes: Codes, params: NF4Params) -> Parts:
        """The arrays of bitsandbytes.

        ``weight`` uint8 [N * K / 2, 1]; ``weight.absmax`` float32 [N * K / 64]; ``weight.quant_map`` float32 [16], the
        table. The exporter adds ``weight.quant_state.bitsandbytes__nf4``, JSON that names the whole tensor's shape.
        """
        return {
            "weight": ((codes[:, ::2] << np.uint8(4)) | codes[:, 1::2]).reshape(-1, 1),
            "weight.absmax": np.ascontiguousarray(params.absmax),
            "weight.quant_map": TABLE,
        }

    def unpack(
        self, parts: Mapping[str, npt.NDArray[Any]], shape: tuple[int, int]
    ) -> tuple[Codes, NF4Params]:
        """The inverse of `pack`."""
        packed = parts["weight"].reshape(-1)
        codes = np.stack([packed >> np.uint8(4), packed & np.uint8(15)], axis=1).reshape(shape)
        return codes, NF4Params(parts["weight.absmax"].reshape(-1))

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Exact bytes of codes, scales and the table."""
        groups = shape[-1] // self.block_of(shape[-1])
        return prod(shape[:-1]) * groups * 36 + TABLE.nbytes


register(NF4Format())
