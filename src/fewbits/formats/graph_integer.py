"""Integers of graphs that a runtime's own library writes: kept in a directory of ours until they are converted.

Names: ``COREML{4|8}_{G16|G32|G64|G128|CHANNEL}[_SYM]``, ``COREML{2|3|6}_CHANNEL_SYM``, ``LITERT8_CHANNEL``,
``LITERT4_{G32|G64|G128|CHANNEL}``.

    value = (code - zero) * scale         code, zero in 0 … 2**b - 1;  zero = 2**(b-1) when symmetric

    codes   I32 [N, ceil(K * b / 32)]   as one run of bits from the lowest
    scales  F16 or F32 [N, G]
    zeros   U8 [N, G]                   unless symmetric

Core ML computes in float16, products of scale and integer too (`constexpr_blockwise_shift_scale` gives the dtype of
its scale). LiteRT's kernels (XNNPACK's qc8w, qc4w, qb4w) are symmetric and apply scales to 32-bit sums: float32 scales
of rows; scales of groups lie as float16 in the file and are bfloat16 in the kernel, so that ours are numbers of both.
8-bit weights leave out -128, as TensorFlow Lite's quantization specification says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fewbits.formats.bit_packing import pack_words, unpack_words
from fewbits.formats.format import Codes, Floats, Parts
from fewbits.formats.integer_grid import IntegerGrid, IntegerParams
from fewbits.formats.registry import register_family
from fewbits.formats.scale_type import FLOAT16, FLOAT32, ScaleType

GROUPS = (16, 32, 64, 128)
COREML_WIDTHS = (8, 4)
COREML_PALETTES = (6, 3, 2)
LITERT_GROUPS = (32, 64, 128)

_PRODUCTS_IN_FLOAT16 = replace(FLOAT16, rounds_products=True)
# Numbers of both float16 (from its smallest normal one on) and bfloat16.
_BFLOAT16_IN_FLOAT16 = ScaleType("F16", 8, 2.0**-14, FLOAT16.largest, signed=False, rounds_products=False)


@dataclass(frozen=True)
class Runtime:
    """What a runtime's integers have in common.

    Attributes:
        prefix: of the formats' names.
        groups: in which there can be scales.
        full_range: whether 8-bit codes may be the lowest.
    """

    prefix: str
    groups: tuple[int, ...]
    full_range: bool

    def name(self, width: int, group: int, *, marked: bool) -> str:
        """Name of a format; a group of 0 is the whole row, `marked` that it ends in _SYM."""
        return f"{self.prefix}{width}_{f'G{group}' if group else 'CHANNEL'}{'_SYM' if marked else ''}"


COREML = Runtime("COREML", GROUPS, full_range=True)
LITERT = Runtime("LITERT", LITERT_GROUPS, full_range=False)
LITERT_NAMES = (
    LITERT.name(8, 0, marked=False),
    *(LITERT.name(4, group, marked=False) for group in (*LITERT_GROUPS, 0)),
)


class GraphInteger(IntegerGrid):
    """Integers of one runtime's graphs."""

    def __init__(
        self, runtime: Runtime, width: int, group: int, scales: ScaleType, *, symmetric: bool, marked: bool
    ) -> None:
        super().__init__(width, "GROUP" if group else "CHANNEL", group, scales, symmetric=symmetric)
        self.name = runtime.name(width, group, marked=marked)
        overhead = 16 + (0 if symmetric else 8)
        self.bits = Fraction(width) + (Fraction(overhead, group) if group else 0)
        if group:
            smaller = runtime.groups.index(group) - 1
            narrower = runtime.groups[smaller] if smaller >= 0 else 0
            self.fallback = runtime.name(width, narrower, marked=marked)
        self._lowest = 0 if runtime.full_range or width < 8 else 1

    @property
    def codes(self) -> range:
        """All numbers of `width` bits, or all but the lowest."""
        return range(self._lowest, 1 << self.width)

    def round(self, weight: Floats, params: IntegerParams, column: int = 0) -> Codes:
        """Nearest codes, ties to even, saturating: float32 [R, S] -> uint8 [R, S]."""
        return np.maximum(super().round(weight, params, column), np.uint8(self._lowest))

    def pack(self, codes: Codes, params: IntegerParams) -> Parts:
        """The arrays above, of some rows."""
        rows = codes.shape[0]
        held = np.float16 if self.scales.name == "F16" else np.float32
        parts: Parts = {
            "codes": pack_words(codes, self.width),
            "scales": params.scale.reshape(rows, -1).astype(held),
        }
        return parts if self.symmetric else {**parts, "zeros": params.zero.reshape(rows, -1)}

    def unpack(
        self, parts: Mapping[str, npt.NDArray[Any]], shape: tuple[int, int]
    ) -> tuple[Codes, IntegerParams]:
        """The inverse of `pack`."""
        codes = unpack_words(parts["codes"], self.width, shape[1])
        scale = parts["scales"].reshape(-1).astype(np.float32)
        middle = np.full(scale.shape, self._middle, np.uint8)
        return codes, IntegerParams(scale, middle if self.symmetric else parts["zeros"].reshape(-1))


@cache
def _coreml(width: int, group: int, *, symmetric: bool) -> GraphInteger:
    return GraphInteger(COREML, width, group, _PRODUCTS_IN_FLOAT16, symmetric=symmetric, marked=symmetric)


@cache
def _litert(width: int, group: int) -> GraphInteger:
    scales = _BFLOAT16_IN_FLOAT16 if group else FLOAT32
    return GraphInteger(LITERT, width, group, scales, symmetric=True, marked=False)


def _coreml_from_name(match: re.Match[str]) -> GraphInteger:
    return _coreml(int(match["width"]), int(match["group"] or 0), symmetric=match["symmetric"] is not None)


def _litert_from_name(match: re.Match[str]) -> GraphInteger:
    return _litert(int(match["width"] or 8), int(match["group"] or 0))


register_family(
    r"COREML(?P<width>[48])_(?:G(?P<group>16|32|64|128)|CHANNEL)(?P<symmetric>_SYM)?",
    _coreml_from_name,
    "COREML{4|8}_{G16|G32|G64|G128|CHANNEL}[_SYM]",
)
register_family(
    r"COREML(?P<width>[236])_CHANNEL_SYM",
    lambda match: _coreml(int(match["width"]), 0, symmetric=True),
    "COREML{2|3|6}_CHANNEL_SYM",
)
register_family(
    r"LITERT(?:8_CHANNEL|(?P<width>4)_(?:G(?P<group>32|64|128)|CHANNEL))",
    _litert_from_name,
    "LITERT8_CHANNEL, LITERT4_{G32|G64|G128|CHANNEL}",
)
