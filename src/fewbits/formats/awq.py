"""4-bit integers as AWQ's container holds them (its version "gemm"): transposed, packed along the rows.

Names: ``AWQ4_G{32|64|128}``.

    value = (code - zero) * scale         code, zero in 0 … 15

    qweight  I32 [K, N / 8]     eight rows of the weight in a word, the lowest 4 bits first: rows 0 2 4 6 1 3 5 7
    qzeros   I32 [G, N / 8]     likewise
    scales   F16 [G, N]

Source: the package GPTQModel (nn_modules/qlinear/gemm_awq), which took it over from AutoAWQ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from functools import cache
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from fewbits.formats.format import Codes, Parts
from fewbits.formats.integer_grid import IntegerGrid, IntegerParams
from fewbits.formats.registry import register_family
from fewbits.formats.scale_type import FLOAT16

GROUPS = (32, 64, 128)
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


class AwqFormat(IntegerGrid):
    """AWQ's container."""

    row_axes = MappingProxyType({"qweight": 1, "qzeros": 1, "scales": 1})
    rows_together = 8

    def __init__(self, group: int) -> None:
        super().__init__(4, "GROUP", group, FLOAT16, symmetric=False)
        self.name = f"AWQ4_G{group}"
        self.bits = 4 + Fraction(20, group)
        self.fallback = f"AWQ4_G{group // 2}" if group > GROUPS[0] else None

    def pack(self, codes: Codes, params: IntegerParams) -> Parts:
        """The arrays above, of some rows."""
        rows = codes.shape[0]
        return {
            "qweight": _pack(codes),
            "qzeros": _pack(params.zero.reshape(rows, -1)),
            "scales": np.ascontiguousarray(params.scale.astype(np.float16).reshape(rows, -1).T),
        }

    def unpack(
        self, parts: Mapping[str, npt.NDArray[Any]], shape: tuple[int, int]
    ) -> tuple[Codes, IntegerParams]:
        """The inverse of `pack`."""
        rows = shape[0]
        scale = parts["scales"].T.astype(np.float32)
        zero = _unpack(parts["qzeros"], rows)
        return _unpack(parts["qweight"], rows), IntegerParams(scale.reshape(-1), zero.reshape(-1))


def _pack(codes: Codes) -> npt.NDArray[np.int32]:
    """Codes uint8 [N, M] as int32 [M, ceil(N / 8)]."""
    rows, columns = codes.shape
    padded = np.zeros((columns, -(-rows // 8), 8), np.uint8)
    padded.reshape(columns, -1)[:, :rows] = codes.T
    words = np.zeros(padded.shape[:2], "<u4")
    for place, row in enumerate(_ORDER):
        words |= padded[:, :, row].astype("<u4") << np.uint32(4 * place)
    return words.view("<i4")


def _unpack(words: npt.NDArray[np.int32], rows: int) -> Codes:
    """The inverse: int32 [M, ceil(N / 8)] -> uint8 [N, M]."""
    unsigned = np.ascontiguousarray(words, "<i4").view("<u4")
    codes = np.empty((*words.shape, 8), np.uint8)
    for place, row in enumerate(_ORDER):
        codes[:, :, row] = (unsigned >> np.uint32(4 * place)) & np.uint32(15)
    return np.ascontiguousarray(codes.reshape(len(words), -1)[:, :rows].T)


@cache
def _format(group: int) -> AwqFormat:
    return AwqFormat(group)


def _from_name(match: re.Match[str]) -> AwqFormat:
    return _format(int(match["group"]))


register_family(r"AWQ4_G(?P<group>32|64|128)", _from_name, "AWQ4_{G32|G64|G128}")
