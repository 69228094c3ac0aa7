"""What XNNPACK's kernels with 8-bit dynamic activations multiply: signed integers of 4 or 8 bits with a positive scale.

Names: ``XNN4_G{32|64|128|256}``, ``XNN4_CHANNEL``, ``XNN8_CHANNEL``.

    value = (code - zero) * scale         code in 0 … 2**b - 1, zero = 2**(b - 1)

    weight         4 bits: U8 [N, K / 2], even column in the low nibble; 8 bits: I8 [N, K], code - 128
    weight_scale   BF16 [N, G] for groups (kernels qd8-f32-qb4w), F32 [N] for rows (qd8-f32-qc4w, qd8-f32-qc8w)

Products aren't rounded: kernels add up integers and multiply sums with the scale in float32. They refuse scales that
aren't positive and normal. Source: XNNPACK's include/xnnpack.h (xnn_define_channelwise_quantized_tensor_value,
xnn_define_blockwise_quantized_tensor_value) and operators/fully-connected-nc.c.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fewbits.formats.bit_packing import pack_nibbles, signed, unpack_nibbles, unsigned
from fewbits.formats.format import Codes, Parts
from fewbits.formats.integer_grid import IntegerGrid, IntegerParams
from fewbits.formats.minifloat import bfloat16_bits, bfloat16_values
from fewbits.formats.registry import register_family
from fewbits.formats.scale_type import BFLOAT16, FLOAT32

GROUPS = (32, 64, 128, 256)
# Kernels take no negative scale, and multiply in float32.
_BFLOAT16 = replace(BFLOAT16, signed=False, rounds_products=False)


class XnnpackFormat(IntegerGrid):
    """XNNPACK's integers.

    Attributes:
        part_dtypes: of the scales, where there are groups.
    """

    def __init__(self, width: int, group: int) -> None:
        scales = _BFLOAT16 if group else FLOAT32
        super().__init__(width, "GROUP" if group else "CHANNEL", group, scales, symmetric=True)
        self.name = xnnpack_name(width, group)
        self.bits = Fraction(width) + (Fraction(16, group) if group else 0)
        self.fallback = xnnpack_name(width, group // 2 if group > GROUPS[0] else 0) if group else None
        self.part_dtypes = {"weight_scale": "BF16"} if group else {}

    def pack(self, codes: Codes, params: IntegerParams) -> Parts:
        """The arrays above, of some rows."""
        rows = len(codes)
        scale = params.scale.reshape(rows, -1)
        return {
            "weight": pack_nibbles(codes) if self.width == 4 else signed(codes, self._middle),
            "weight_scale": bfloat16_bits(scale) if self.block else np.ascontiguousarray(scale[:, 0]),
        }

    def unpack(
        self, parts: Mapping[str, npt.NDArray[Any]], shape: tuple[int, int]
    ) -> tuple[Codes, IntegerParams]:
        """The inverse of `pack`."""
        weight, scale = parts["weight"], parts["weight_scale"].reshape(-1)
        codes = unpack_nibbles(weight, shape[1]) if self.width == 4 else unsigned(weight, self._middle)
        scale = bfloat16_values(scale) if self.block else scale.astype(np.float32)
        return codes, IntegerParams(scale, np.full(scale.shape, self._middle, np.uint8))


def xnnpack_name(width: int, group: int) -> str:
    """The format's name; `group` is 0 for a scale for each row."""
    return f"XNN{width}_{f'G{group}' if group else 'CHANNEL'}"


# From most to fewest bits.
NAMES = (xnnpack_name(8, 0), *(xnnpack_name(4, group) for group in GROUPS), xnnpack_name(4, 0))


@cache
def _format(width: int, group: int) -> XnnpackFormat:
    return XnnpackFormat(width, group)


def _from_name(match: re.Match[str]) -> XnnpackFormat:
    return _format(int(match["width"] or 4), int(match["group"] or 0))


register_family(
    r"XNN(?:4_G(?P<group>32|64|128|256)|(?P<width>4|8)_CHANNEL)",
    _from_name,
    "XNN4_{G32|G64|G128|G256}, XNN{4|8}_CHANNEL",
)
