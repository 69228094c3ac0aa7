"""Integers as OpenVINO's compressed weights hold them: constants of 4 or 8 bits with float16 scales.

Names: ``OV{4|8}_{G32|G64|G128|CHANNEL}[_SYM]``.

    value = (code - zero) * scale         code, zero in 0 … 2**b - 1;  zero = 2**(b-1) when symmetric

    codes        U8 [N, K * b / 8]           4 bits: the even column low
    scales       F16 [N, G]
    zero_points  U8 [N, ceil(G * b / 8)]     none when symmetric

Symmetric codes are stored less the zero point, in two's complement, which are the bytes of a constant of type i4 or i8;
others are those of u4 or u8. Source: OpenVINO's element types; the graphs of nncf.compress_weights.
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
GROUPS = (32, 64, 128)


class OpenvinoFormat(IntegerGrid):
    """OpenVINO's compressed weights."""

    def __init__(self, width: int, group: int, *, symmetric: bool) -> None:
        super().__init__(width, "GROUP" if group else "CHANNEL", group, FLOAT16, symmetric=symmetric)
        self.name = openvino_name(width, group, symmetric=symmetric)
        overhead = 16 + (0 if symmetric else width)
        self.bits = Fraction(width) + (Fraction(overhead, group) if group else 0)
        if group:
            smaller = group // 2 if group > GROUPS[0] else 0
            self.fallback = openvino_name(width, smaller, symmetric=symmetric)

    def _stored(self, codes: Codes) -> Codes:
        """Symmetric codes less the zero point in two's complement, or the inverse: their highest bit turned over."""
        return codes ^ np.uint8(self._middle) if self.symmetric else codes

    def pack(self, codes: Codes, params: IntegerParams) -> Parts:
        """The arrays above, of some rows; with 4 bits K must be even."""
        rows = codes.shape[0]
        parts: Parts = {
            "codes": pack_bytes(self._stored(codes), self.width),
            "scales": params.scale.astype(np.float16).reshape(rows, -1),
        }
        if not self.symmetric:
            parts["zero_points"] = pack_bytes(params.zero.reshape(rows, -1), self.width)
        return parts

    def unpack(
        self, parts: Mapping[str, npt.NDArray[Any]], shape: tuple[int, int]
    ) -> tuple[Codes, IntegerParams]:
        """The inverse of `pack`."""
        rows, columns = shape
        groups = columns // self.block_of(columns)
        codes = self._stored(unpack_bytes(parts["codes"], self.width, columns))
        scale = parts["scales"].astype(np.float32).reshape(-1)
        if self.symmetric:
            zero = np.full(rows * groups, self._middle, np.uint8)
        else:
            zero = unpack_bytes(parts["zero_points"], self.width, groups).reshape(-1)
        return codes, IntegerParams(scale, zero)


def openvino_name(width: int, group: int, *, symmetric: bool) -> str:
    """Name of the format; a group of 0 is the whole row."""
    return f"OV{width}_{f'G{group}' if group else 'CHANNEL'}{'_SYM' if symmetric else ''}"


FORMATS = tuple(
    openvino_name(width, group, symmetric=symmetric)
    for width in WIDTHS
    for group in (*GROUPS, 0)
    for symmetric in (False, True)
)


@cache
def _format(width: int, group: int, symmetric: bool) -> OpenvinoFormat:
    return OpenvinoFormat(width, group, symmetric=symmetric)


def _from_name(match: re.Match[str]) -> OpenvinoFormat:
    return _format(int(match["width"]), int(match["group"] or 0), match["symmetric"] is not None)


register_family(
    r"OV(?P<width>[48])_(?:G(?P<group>32|64|128)|CHANNEL)(?P<symmetric>_SYM)?",
    _from_name,
    "OV{4|8}_{G32|G64|G128|CHANNEL}[_SYM]",
)
