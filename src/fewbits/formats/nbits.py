"""4 and 8-bit integers as ONNX Runtime's MatMulNBits and GatherBlockQuantized hold them.

Names: ``NBITS{4|8}_G{16|32|64|128}``; with ``_SYM``, no zero point.

    value = (code - zero) * scale         code, zero in 0 … 2**b - 1;  zero = 2**(b-1) when symmetric

    codes        U8 [N, K * b / 8]            at 4 bits two codes in a byte, the lower four bits first
    scales       F16 [N, G]                   G = K / group
    zero_points  U8 [N, ceil(G * b / 8)]      packed like codes, each row from a byte of its own; not when symmetric

Source: ONNX Runtime, ContribOperators.md (MatMulNBits, GatherBlockQuantized). Scales there have the dtype of the
activations; they are float16 here because 16 bits are enough for them, and the graph casts them where it must.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fewbits.formats.bit_packing import pack_bytes, unpack_bytes
from fewbits.formats.format import Codes, Parts
from fewbits.formats.integer_grid import IntegerGrid, IntegerParams
from fewbits.formats.registry import register_family
from fewbits.formats.scale_type import FLOAT16

WIDTHS = (8, 4)
GROUPS = (16, 32, 64, 128)
# The parts, in the order in which the operators take them.
CODES, SCALES, ZERO_POINTS = "codes", "scales", "zero_points"


class NBitsFormat(IntegerGrid):
    """The operators' layout."""

    def __init__(self, width: int, group: int, *, symmetric: bool) -> None:
        super().__init__(width, "GROUP", group, FLOAT16, symmetric=symmetric)
        self.name = nbits_name(width, group, symmetric=symmetric)
        self.bits = width + Fraction(16 + (0 if symmetric else width), group)
        smaller = GROUPS.index(group) - 1
        self.fallback = nbits_name(width, GROUPS[smaller], symmetric=symmetric) if smaller >= 0 else None

    def pack(self, codes: Codes, params: IntegerParams) -> Parts:
        """The arrays above, of some rows."""
        rows = codes.shape[0]
        parts: Parts = {
            CODES: pack_bytes(codes, self.width),
            SCALES: params.scale.astype(np.float16).reshape(rows, -1),
        }
        if not self.symmetric:
            parts[ZERO_POINTS] = pack_bytes(params.zero.reshape(rows, -1), self.width)
        return parts

    def unpack(
        self, parts: Mapping[str, npt.NDArray[Any]], shape: tuple[int, int]
    ) -> tuple[Codes, IntegerParams]:
        """The inverse of `pack`."""
        groups = shape[1] // self.block_of(shape[1])
        scale = parts[SCALES].astype(np.float32).reshape(-1)
        zero = np.full(scale.shape, self._middle, np.uint8)
        if not self.symmetric:
            zero = unpack_bytes(parts[ZERO_POINTS], self.width, groups).reshape(-1)
        return unpack_bytes(parts[CODES], self.width, shape[1]), IntegerParams(scale, zero)


def nbits_name(width: int, group: int, *, symmetric: bool) -> str:
    """What the format is called."""
    return f"NBITS{width}_G{group}{'_SYM' if symmetric else ''}"


# Every name -> its group.
NBITS_NAMES: Mapping[str, int] = {
    nbits_name(width, group, symmetric=symmetric): group
    for width in WIDTHS
    for group in GROUPS
    for symmetric in (False, True)
}


@cache
def _format(width: int, group: int, symmetric: bool) -> NBitsFormat:
    return NBitsFormat(width, group, symmetric=symmetric)


def _from_name(match: re.Match[str]) -> NBitsFormat:
    return _format(int(match["width"]), int(match["group"]), match["symmetric"] is not None)


register_family(
    r"NBITS(?P<width>[48])_G(?P<group>16|32|64|128)(?P<symmetric>_SYM)?",
    _from_name,
    "NBITS{4|8}_{G16|G32|G64|G128}[_SYM]",
)
