"""Formats whose names say as well how the runtime rounds a map's inputs, where the weights' format alone doesn't.

    {INT8_CHANNEL_SYM | FP8_E4M3_CHANNEL | FP8_E4M3_TENSOR}_STATIC    8 bits, one scale for all tokens, in the file
    NVFP4_A4                                                          NVFP4, a global scale in the file
    MXFP4_PACKED_A4                                                   MXFP4
    INT4_{G32|G64|G128|CHANNEL}_SYM_A8                                8-bit integers, a scale for each token

The numbers are those of the format that the name begins with, and so are the arrays, but for the last: runtimes that
multiply integers with integers take compressed-tensors' ``int-quantized`` layout, a byte for each of them:
``weight`` int8 [N, K], ``weight_scale`` bfloat16 [N, K / B].
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from fractions import Fraction
from functools import cache
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from fewbits.formats.bit_packing import signed, unsigned
from fewbits.formats.format import Codes, Format, Parts
from fewbits.formats.integer import IntegerFormat
from fewbits.formats.integer_grid import IntegerParams
from fewbits.formats.minifloat import bfloat16_bits, bfloat16_values
from fewbits.formats.registry import get_format, register_family

STATIC = ("INT8_CHANNEL_SYM_STATIC", "FP8_E4M3_CHANNEL_STATIC", "FP8_E4M3_TENSOR_STATIC")
FOUR_BIT = ("NVFP4_A4", "MXFP4_PACKED_A4")
W4A8 = ("INT4_G128_SYM_A8", "INT4_G64_SYM_A8", "INT4_G32_SYM_A8", "INT4_CHANNEL_SYM_A8")
_SMALLER = {128: "INT4_G64_SYM_A8", 64: "INT4_G32_SYM_A8", 32: "INT4_CHANNEL_SYM_A8", 0: None}


class ByteIntegerFormat(IntegerFormat):
    """Symmetric integers of fewer than 8 bits, a byte for each."""

    def __init__(self, width: int, group: int) -> None:
        super().__init__(width, "GROUP" if group else "CHANNEL", group, symmetric=True)
        self.name = f"{self.name}_A8"
        self.bits = Fraction(8) + (Fraction(16, group) if group else 0)
        self.fallback = _SMALLER[group]

    def pack(self, codes: Codes, params: IntegerParams) -> Parts:
        """``weight`` int8 [N, K], ``weight_scale`` bfloat16 as uint16 [N, K / B]."""
        scale = params.scale.reshape(len(codes), -1)
        return {"weight": signed(codes, self._middle), "weight_scale": bfloat16_bits(scale)}

    def unpack(
        self, parts: Mapping[str, npt.NDArray[Any]], shape: tuple[int, int]
    ) -> tuple[Codes, IntegerParams]:
        """The inverse of `pack`."""
        scale = bfloat16_values(parts["weight_scale"]).reshape(-1)
        zero = np.broadcast_to(np.uint8(self._middle), scale.shape)
        return unsigned(parts["weight"], self._middle).reshape(shape), IntegerParams(scale, zero)

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Exact bytes of codes and scales."""
        rows, columns = prod(shape[:-1]), shape[-1]
        return rows * (columns + 2 * (columns // self.block_of(columns)))


@cache
def _same_weights(name: str, weights: str) -> Format[Any]:
    """The format `weights` under another name."""
    renamed = copy.copy(get_format(weights))
    renamed.name = name
    return renamed


@cache
def _bytes(group: int) -> ByteIntegerFormat:
    return ByteIntegerFormat(4, group)


def _named(match: re.Match[str]) -> Format[Any]:
    return _same_weights(match[0], match["weights"])


register_family(
    r"(?P<weights>INT8_CHANNEL_SYM|FP8_E4M3_CHANNEL|FP8_E4M3_TENSOR)_STATIC", _named, ", ".join(STATIC)
)
register_family(r"(?P<weights>NVFP4|MXFP4_PACKED)_A4", _named, ", ".join(FOUR_BIT))
register_family(
    r"INT4_(?:G(?P<group>32|64|128)|CHANNEL)_SYM_A8",
    lambda match: _bytes(int(match["group"] or 0)),
    "INT4_{G32|G64|G128|CHANNEL}_SYM_A8",
)
