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

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from math import gcd, prod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fewbits.errors import FormatError
from fewbits.formats.bit_packing import pack_words, unpack_words, words_per_row
from fewbits.formats.format import Codes, Floats, Format, LinearPart, Params, Parts
from fewbits.formats.integer_fit import fit_asymmetric, fit_symmetric
from fewbits.formats.minifloat import BFLOAT16_MAX, bfloat16_bits, bfloat16_values, round_bfloat16
from fewbits.formats.registry import register_family
from fewbits.formats.scale_search import denormalise, histogram

Scope = Literal["GROUP", "CHANNEL", "TENSOR"]

GROUPS = (16, 32, 64, 128)

# Scales of pack-quantized parts are BF16, those of int-quantized parts F32. They are fixed so that a plan's
# bytes don't depend on the dtype of the source.
PACKED_SCALE_DTYPE = "BF16"
WIDE_SCALE_DTYPE = "F32"


@dataclass(frozen=True)
class IntegerParams(Params):
    """Scale float32 [R] (in pack-quantized formats a bfloat16 value, never 0) and zero point uint8 [R]."""

    scale: Floats
    zero: Codes


class IntegerFormat(Format[IntegerParams]):
    """Integers with one scale, and unless symmetric one zero point, for each block.

    Attributes:
        width: bits of a code.
        symmetric: whether the zero point is fixed at ``2**(width - 1)``.
        scope: what a scale is for.
        packed: pack-quantized layout; otherwise int-quantized.
    """

    params_type = IntegerParams

    def __init__(self, width: int, scope: Scope, group: int = 0, *, symmetric: bool) -> None:
        self.width = width
        self.scope: Scope = scope
        self.symmetric = symmetric
        self.packed = width < 8 or scope == "GROUP"
        self.block = group
        self.name = f"INT{width}_{f'G{group}' if group else scope}{'_SYM' if symmetric else ''}"
        overhead = 16 + (0 if symmetric else width)
        self.bits = Fraction(width) + (Fraction(overhead, group) if group else 0)
        self.fallback = self._fallback()
        self.part_dtypes = {"weight_scale": PACKED_SCALE_DTYPE} if self.packed else {}
        if scope == "TENSOR":
            self.tensor_parts = ("weight_scale",) if symmetric else ("weight_scale", "weight_zero_point")
        # The zero points of this many rows fill whole 32-bit words.
        self.rows_together = 32 // gcd(32, width) if self._zeros_packed else 1
        self._bound: IntegerParams | None = None

    @property
    def codes(self) -> range:
        """All numbers of `width` bits."""
        return range(1 << self.width)

    def _fallback(self) -> str | None:
        if self.scope != "GROUP":
            return None
        smaller = GROUPS.index(self.block) - 1
        scope = f"G{GROUPS[smaller]}" if smaller >= 0 else "CHANNEL"
        return f"INT{self.width}_{scope}{'_SYM' if self.symmetric else ''}"

    @property
    def _zeros_packed(self) -> bool:
        return self.packed and not self.symmetric and self.scope != "TENSOR"

    @property
    def _middle(self) -> int:
        return int(1 << (self.width - 1))

    def prepare(self, chunks: Iterable[Floats]) -> IntegerFormat:
        """For a scale of the whole tensor: a copy whose `fit` returns the best one for these numbers."""
        if self.scope != "TENSOR":
            return self
        bound = copy.copy(self)
        bound._bound = self._fit(*histogram(chunks))
        return bound

    def fit(self, weight: Floats, importance: Floats | None = None) -> IntegerParams:
        """Scales and zero points by candidate search; see `Format.fit`.

        Raises:
            FormatError: the format has one scale for the whole tensor and `prepare` wasn't called.
        """
        if self.scope != "TENSOR":
            return self._fit(weight, importance)
        if self._bound is None:
            raise FormatError(
                f"{self.name} has one scale for the whole tensor and doesn't know the tensor yet",
                action="Call prepare(chunks) and use the format that it returns.",
            )
        return self._bound.take(np.zeros(weight.shape[0], np.intp))

    def _fit(self, weight: Floats, importance: Floats | None) -> IntegerParams:
        if self.symmetric:
            scale = fit_symmetric(weight, importance, self.width, bfloat16=self.packed)
            return IntegerParams(scale, np.full(scale.shape, self._middle, np.uint8))
        return IntegerParams(*fit_asymmetric(weight, importance, self.width, bfloat16=self.packed))

    def round(self, weight: Floats, params: IntegerParams, column: int = 0) -> Codes:
        """Nearest codes, ties to even, saturating: float32 [R, S] -> uint8 [R, S]."""
        del column
        # As compressed-tensors computes it, in signed numbers: the same codes in ties and last bits too.
        with np.errstate(over="ignore"):
            x = weight / params.scale[:, None]
        if not self.symmetric:
            x += params.zero[:, None].astype(np.float32) - np.float32(self._middle)
        np.maximum(x, np.float32(-self._middle), out=x)
        np.minimum(x, np.float32(self._middle - 1), out=x)
        np.rint(x, out=x)
        x += np.float32(self._middle)
        return x.astype(np.uint8)

    def decode(self, codes: Codes, params: IntegerParams, column: int = 0) -> Floats:
        """``(code - zero) * scale``, rounded to bfloat16 if packed: uint8 [R, S] -> float32 [R, S]."""
        del column
        value = codes.astype(np.float32)
        value -= params.zero[:, None]
        value *= params.scale[:, None]
        return round_bfloat16(value) if self.packed else value

    def linear_parts(self) -> tuple[LinearPart[IntegerParams], ...]:
        """Scale and offset, whose zero point is rounded, then the scale alone; nothing of a whole tensor."""
        if self.scope == "TENSOR":
            return ()
        columns = slice(None)
        scale_alone = LinearPart[IntegerParams](
            columns,
            lambda params: (params.scale,),
            lambda codes, params: (codes.astype(np.float32) - params.zero[:, None],),
            lambda params, scales: IntegerParams(self._storable(scales[0]), params.zero),
        )
        if self.symmetric:
            return (scale_alone,)
        with_offset = LinearPart[IntegerParams](
            columns,
            lambda params: (params.scale, -params.scale * params.zero),
            lambda codes, _: (codes.astype(np.float32), np.ones(codes.shape, np.float32)),
            lambda _, scales: self._with_offset(*scales),
        )
        return with_offset, scale_alone

    def _storable(self, scale: Floats) -> Floats:
        if not (self.symmetric and self.packed):
            scale = np.maximum(scale, np.float32(0))
        scale = denormalise(scale, np.zeros(scale.shape, np.int32), BFLOAT16_MAX / (1 << self.width))
        return round_bfloat16(scale) if self.packed else scale

    def _with_offset(self, scale: Floats, offset: Floats) -> IntegerParams:
        scale = self._storable(scale)
        with np.errstate(over="ignore"):
            zero = np.clip(np.rint(-offset / scale), 0, (1 << self.width) - 1)
        return IntegerParams(scale, zero.astype(np.uint8))

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
            parts["weight"] = _signed(codes, self._middle)
            parts["weight_scale"] = np.ascontiguousarray(scale)
        if self._zeros_packed:
            parts["weight_zero_point"] = np.ascontiguousarray(pack_words(zero.T, self.width).T)
        elif not self.symmetric:
            parts["weight_zero_point"] = _signed(zero, self._middle)
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
            codes = _unsigned(parts["weight"], self._middle)
        if self.symmetric:
            zero = np.full(1, self._middle, np.uint8)
        elif self._zeros_packed:
            zero = unpack_words(parts["weight_zero_point"].T, self.width, rows).T
        else:
            zero = _unsigned(parts["weight_zero_point"], self._middle)
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


def _signed(codes: Codes, middle: int) -> npt.NDArray[np.int8]:
    return (codes - np.uint8(middle)).view(np.int8)


def _unsigned(values: npt.NDArray[np.int8], middle: int) -> Codes:
    return values.view(np.uint8) + np.uint8(middle)


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
