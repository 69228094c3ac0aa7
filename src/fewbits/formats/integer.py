"""Integers of 2 to 8 bits with a scale per group of columns, per row (channel) or per tensor.

Names: ``INT{b}_G{16|32|64|128}``, ``INT{b}_CHANNEL``, ``INT{b}_TENSOR``; with ``_SYM``, no zero point.

    value = (code - zero) * scale         code, zero in 0 … 2**b - 1;  zero = 2**(b-1) when symmetric

Two layouts of compressed-tensors, which stores code - 2**(b-1):
- ``pack-quantized`` (weight-only runtimes): everything but the next line. Scales are bfloat16, the dtype it
  gives the scales of a bfloat16 model, and the product is bfloat16 too.
- ``int-quantized`` (8-bit weights and activations): INT8_CHANNEL and INT8_TENSOR. Scales are float32 because
  these runtimes apply them to 32-bit sums.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from functools import cache
from math import gcd, prod
from typing import Any

import numpy as np
import numpy.typing as npt

from fewbits.formats.bit_packing import pack_words, signed, unpack_words, unsigned, words_per_row
from fewbits.formats.format import Codes, Parts
from fewbits.formats.integer_grid import IntegerGrid, IntegerParams, Scope
from fewbits.formats.minifloat import bfloat16_bits, bfloat16_values
from fewbits.formats.registry import register_family
from fewbits.formats.scale_type import BFLOAT16, FLOAT32

GROUPS = (16, 32, 64, 128)


class IntegerFormat(IntegerGrid):
    """Integers as compressed-tensors packs them.

    Scales are fixed by the layout so that a plan's bytes don't depend on the dtype of the source.

    Attributes:
        packed: pack-quantized layout, with bfloat16 scales; otherwise int-quantized, with float32 scales.
    """

    def __init__(self, width: int, scope: Scope, group: int = 0, *, symmetric: bool) -> None:
        self.packed = width < 8 or scope == "GROUP"
        super().__init__(width, scope, group, BFLOAT16 if self.packed else FLOAT32, symmetric=symmetric)
        self.name = f"INT{width}_{f'G{group}' if group else scope}{'_SYM' if symmetric else ''}"
        overhead = 16 + (0 if symmetric else width)
        self.bits = Fraction(width) + (Fraction(overhead, group) if group else 0)
        self.fallback = self._fallback()
        self.part_dtypes = {"weight_scale": self.scales.name} if self.packed else {}
        if scope == "TENSOR":
            self.tensor_parts = ("weight_scale",) if symmetric else ("weight_scale", "weight_zero_point")
        # The zero points of this many rows fill whole 32-bit words.
        self.rows_together = 32 // gcd(32, width) if self._zeros_packed else 1

    def _fallback(self) -> str | None:
        if self.scope != "GROUP":
            return None
        smaller = GROUPS.index(self.block) - 1
        scope = f"G{GROUPS[smaller]}" if smaller >= 0 else "CHANNEL"
        return f"INT{self.width}_{scope}{'_SYM' if self.symmetric else ''}"

    @property
    def _zeros_packed(self) -> bool:
        return self.packed and not self.symmetric and self.scope != "TENSOR"

    def pack(self, codes: Codes, params: IntegerParams) -> Parts:
        """compressed-tensors' arrays, G = K / B scales in a row.

        pack-quantized: ``weight_packed`` int32 [N, ceil(K * b / 32)], ``weight_scale`` bfloat16 as uint16
        [N, G], ``weight_zero_point`` int32 [ceil(N * b / 32), G]: zero points are packed down the rows.
        int-quantized: ``weight`` int8 [N, K], ``weight_scale`` float32 [N, 1], ``weight_zero_point`` int8
        [N, 1]. With a scale of the tensor, ``weight_scale`` [1] and ``weight_zero_point`` int8 [1].
        The exporter adds pack-quantized's ``weight_shape``: a chunk doesn't know how many rows there are.
        """
        rows, columns = codes.shape
        groups = (rows, columns // self.block_of(columns))
        scale, zero = params.scale.reshape(groups), params.zero.reshape(groups)
        if self.scope == "TENSOR":
            scale, zero = scale[0], zero[0]
        parts: Parts = {}
        if self.packed:
            parts["weight_packed"] = pack_words(codes, self.width)
            parts["weight_scale"] = bfloat16_bits(scale)
        else:
            parts["weight"] = signed(codes, self._middle)
            parts["weight_scale"] = np.ascontiguousarray(scale)
        if self._zeros_packed:
            parts["weight_zero_point"] = np.ascontiguousarray(pack_words(zero.T, self.width).T)
        elif not self.symmetric:
            parts["weight_zero_point"] = signed(zero, self._middle)
        return parts

    def unpack(
        self, parts: Mapping[str, npt.NDArray[Any]], shape: tuple[int, int]
    ) -> tuple[Codes, IntegerParams]:
        """The inverse of `pack`."""
        rows, columns = shape
        groups = (rows, columns // self.block_of(columns))
        scale = parts["weight_scale"]
        if self.packed:
            codes = unpack_words(parts["weight_packed"], self.width, columns)
            scale = bfloat16_values(scale)
        else:
            codes = unsigned(parts["weight"], self._middle)
        if self.symmetric:
            zero = np.full(1, self._middle, np.uint8)
        elif self._zeros_packed:
            zero = unpack_words(parts["weight_zero_point"].T, self.width, rows).T
        else:
            zero = unsigned(parts["weight_zero_point"], self._middle)
        return codes, IntegerParams(
            np.broadcast_to(scale, groups).reshape(-1), np.broadcast_to(zero, groups).reshape(-1)
        )

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Exact bytes of the arrays that `pack` returns for the whole tensor."""
        rows, columns = prod(shape[:-1]), shape[-1]
        groups = columns // self.block_of(columns)
        total = rows * (4 * words_per_row(columns, self.width) if self.packed else columns)
        scales = 1 if self.scope == "TENSOR" else rows * groups
        total += scales * (2 if self.packed else 4)
        if self._zeros_packed:
            total += 4 * words_per_row(rows, self.width) * groups
        elif not self.symmetric:
            total += scales
        return total


@cache
def _format(width: int, scope: Scope, group: int, symmetric: bool) -> IntegerFormat:
    return IntegerFormat(width, scope, group, symmetric=symmetric)


def _from_name(match: re.Match[str]) -> IntegerFormat:
    width, symmetric = int(match["width"]), match["symmetric"] is not None
    if match["group"]:
        return _format(width, "GROUP", int(match["group"]), symmetric)
    return _format(width, "CHANNEL" if match["scope"] == "CHANNEL" else "TENSOR", 0, symmetric)


register_family(
    r"INT(?P<width>[2-8])_(?:G(?P<group>16|32|64|128)|(?P<scope>CHANNEL|TENSOR))(?P<symmetric>_SYM)?",
    _from_name,
    "INT{2..8}_{G16|G32|G64|G128|CHANNEL|TENSOR}[_SYM]",
)
