"""Integers as GPTQ's container holds them: transposed, packed along the columns, with float16 scales.

Names: ``GPTQ{2|3|4|8}_{G32|G64|G128|CHANNEL}[_SYM]``.

    value = (code - zero) * scale         code, zero in 0 … 2**b - 1;  zero = 2**(b-1) when symmetric

    qweight  I32 [K * b / 32, N]   column n: the codes of row n of the weight, as one run of bits from the lowest
    qzeros   I32 [G, N * b / 32]   row g: the zero points of the groups g
    scales   F16 [G, N]
    g_idx    I32 [K]               k -> k // group

Checkpoints of the format ``gptq`` store zero - 1, which has no place for 0, those of ``gptq_v2`` the zero point
itself. Symmetric formats here are of the first, which every runtime reads; the others of the second.
Source: the package GPTQModel (nn_modules/qlinear, FORMAT.GPTQ and FORMAT.GPTQ_V2).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from functools import cache
from math import gcd
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from fewbits.formats.bit_packing import pack_words, unpack_words
from fewbits.formats.format import Codes, Parts
from fewbits.formats.integer_grid import IntegerGrid, IntegerParams
from fewbits.formats.registry import register_family
from fewbits.formats.scale_type import FLOAT16

WIDTHS = (8, 4, 3, 2)
GROUPS = (32, 64, 128)


class GptqFormat(IntegerGrid):
    """GPTQ's container."""

    tensor_parts = ("g_idx",)
    row_axes = MappingProxyType({"qweight": 1, "qzeros": 1, "scales": 1})

    def __init__(self, width: int, group: int, *, symmetric: bool) -> None:
        super().__init__(width, "GROUP" if group else "CHANNEL", group, FLOAT16, symmetric=symmetric)
        self.name = gptq_name(width, group, symmetric=symmetric)
        self.bits = Fraction(width) + (Fraction(16 + width, group) if group else 0)
        if group in GROUPS[1:]:
            self.fallback = gptq_name(width, GROUPS[GROUPS.index(group) - 1], symmetric=symmetric)
        elif group:
            self.fallback = gptq_name(width, 0, symmetric=symmetric)
        self.rows_together = 32 // gcd(32, width)
        self._stored_below = 1 if symmetric else 0

    def pack(self, codes: Codes, params: IntegerParams) -> Parts:
        """The arrays above, of some rows; K must be a multiple of 32."""
        rows, columns = codes.shape
        group = self.block_of(columns)
        zero = (params.zero - np.uint8(self._stored_below)).reshape(rows, -1)
        return {
            "qweight": np.ascontiguousarray(pack_words(codes, self.width).T),
            "qzeros": pack_words(zero.T, self.width),
            "scales": np.ascontiguousarray(params.scale.astype(np.float16).reshape(rows, -1).T),
            "g_idx": np.arange(columns, dtype=np.int32) // np.int32(group),
        }

    def unpack(
        self, parts: Mapping[str, npt.NDArray[Any]], shape: tuple[int, int]
    ) -> tuple[Codes, IntegerParams]:
        """The inverse of `pack`."""
        rows, columns = shape
        zero = unpack_words(parts["qzeros"], self.width, rows).T + np.uint8(self._stored_below)
        scale = parts["scales"].T.astype(np.float32)
        codes = unpack_words(parts["qweight"].T, self.width, columns)
        return codes, IntegerParams(scale.reshape(-1), zero.reshape(-1))


def gptq_name(width: int, group: int, *, symmetric: bool) -> str:
    """Name of the format; a group of 0 is the whole row."""
    return f"GPTQ{width}_{f'G{group}' if group else 'CHANNEL'}{'_SYM' if symmetric else ''}"


@cache
def _format(width: int, group: int, symmetric: bool) -> GptqFormat:
    return GptqFormat(width, group, symmetric=symmetric)


def _from_name(match: re.Match[str]) -> GptqFormat:
    return _format(int(match["width"]), int(match["group"] or 0), match["symmetric"] is not None)


register_family(
    r"GPTQ(?P<width>[2348])_(?:G(?P<group>32|64|128)|CHANNEL)(?P<symmetric>_SYM)?",
    _from_name,
    "GPTQ{2|3|4|8}_{G32|G64|G128|CHANNEL}[_SYM]",
)
