"""Integers of 2 to 8 bits with a scale, and maybe a zero point, per group of columns, per row or per tensor.

    value = (code - zero) * scale         code, zero in 0 … 2**b - 1;  zero = 2**(b-1) when symmetric

What all containers of such integers compute, without how they lie: subclasses pack them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fewbits.errors import FormatError
from fewbits.formats.format import Codes, Floats, LinearPart, Params, QTensor
from fewbits.formats.integer_fit import fit, fit_asymmetric, fit_symmetric
from fewbits.formats.numbers import Levels, Numbers, StepNumbers, UnlikeError
from fewbits.formats.scale_search import denormalise, dot, normalise
from fewbits.formats.scale_type import ScaleType
from fewbits.formats.tensor_scope import TENSOR, TensorScope

# Bits up to which symmetric codes are fitted to the largest numbers first.
_FEW = 4
Scope = Literal["GROUP", "CHANNEL", "TENSOR"]


@dataclass(frozen=True)
class IntegerParams(Params):
    """Scale float32 [R] (in pack-quantized formats a bfloat16 value, never 0) and zero point uint8 [R]."""

    scale: Floats
    zero: Codes


class IntegerGrid(TensorScope[IntegerParams]):
    """Integers with one scale, and unless symmetric one zero point, for each block.

    Attributes:
        width: bits of a code.
        scope: what a scale is for.
        symmetric: whether the zero point is fixed at ``2**(width - 1)``.
        scales: their dtype.
    """

    params_type = IntegerParams

    def __init__(self, width: int, scope: Scope, group: int, scales: ScaleType, *, symmetric: bool) -> None:
        self.width = width
        self.scope: Scope = scope
        self.block = group
        self.scales = scales
        self.symmetric = symmetric

    @property
    def codes(self) -> range:
        """All numbers of `width` bits."""
        return range(1 << self.width)

    @property
    def _middle(self) -> int:
        return int(1 << (self.width - 1))

    def blind_importance(self, weight: Floats) -> Floats | None:
        """For symmetric codes of few bits the square of each number and their mean in its block.

        Their least squared error cuts or moves a block's largest numbers, whose loss is more than their share of the
        error: docs/log.md, 2026-11-30, has the figures, of other widths and of zero points too.
        """
        if not self.symmetric or self.width > _FEW:
            return None
        # Of numbers below 1, so that squares neither overflow nor vanish.
        scaled, _ = normalise(weight)
        mean = dot(scaled, scaled) / np.float32(scaled.shape[1])
        square = np.square(scaled, out=scaled)
        square += mean[:, None]
        return square

    def _fit(self, weight: Floats, importance: Floats | None) -> IntegerParams:
        return IntegerParams(*fit(weight, importance, self.width, self.scales, symmetric=self.symmetric))

    def specified_fit(self, weight: Floats, importance: Floats | None = None) -> IntegerParams:
        """What `fit` finds for blocks [R, B], by its specification."""
        if self.symmetric:
            scale = fit_symmetric(weight, importance, self.width, self.scales)
            return IntegerParams(scale, np.full(scale.shape, self._middle, np.uint8))
        return IntegerParams(*fit_asymmetric(weight, importance, self.width, self.scales))

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
        """``(code - zero) * scale``, rounded where the runtime rounds it: uint8 [R, S] -> float32 [R, S]."""
        del column
        value = codes.astype(np.float32)
        value -= params.zero[:, None]
        value *= params.scale[:, None]
        return self.scales.round(value) if self.scales.rounds_products else value

    def numbers(self, tensor: QTensor) -> StepNumbers:
        """See `Format.numbers`."""
        params = tensor.params
        assert isinstance(params, IntegerParams)
        rows, columns = tensor.shape
        block = self.block_of(columns)
        zero = params.zero.reshape(rows, -1).astype(np.int16)
        levels = tensor.codes.astype(np.int16) - np.repeat(zero, block, axis=1)
        return StepNumbers(block, levels, params.scale.reshape(rows, -1), zero)

    def take_over(self, numbers: Numbers) -> QTensor:
        """See `Format.take_over`; where all of a block is 0 its scale may be another."""
        if not isinstance(numbers, StepNumbers):
            raise UnlikeError("its numbers aren't integers")
        if self.scope == TENSOR:
            raise FormatError("it has scales of groups or rows")
        rows, columns = numbers.levels.shape
        numbers = numbers.with_zero_points().in_blocks(self.block_of(columns))
        low, high = numbers.extremes
        nothing = ((low == 0) & (high == 0)) | (numbers.scale == 0)
        wanted = np.where(nothing, np.float32(1), numbers.scale)
        scale = self.scales.round(wanted)
        if (scale != wanted).any() or (np.abs(scale) < self.scales.smallest).any():
            raise FormatError(f"its scales aren't numbers of {self.scales.name}")
        if not self.scales.signed and (scale < 0).any():
            raise FormatError("its scales are negative")
        low, high = (np.where(nothing, np.int16(0), ends) for ends in (low, high))
        zero = self._zero_points(numbers, low, high)
        levels = np.where(np.repeat(nothing, numbers.block, axis=1), np.int16(0), numbers.levels)
        codes = (levels + np.repeat(zero, numbers.block, axis=1)).astype(np.uint8)
        params = IntegerParams(scale.reshape(-1), zero.astype(np.uint8).reshape(-1))
        return QTensor(self, (rows, columns), codes, params)

    def _zero_points(self, numbers: StepNumbers, low: Levels, high: Levels) -> Levels:
        """The zero point of each block, int16: the one it has where that is possible."""
        least, most = np.maximum(-low, 0), (1 << self.width) - 1 - np.maximum(high, 0)
        if self.symmetric:
            least, most = np.maximum(least, self._middle), np.minimum(most, self._middle)
        if (least > most).any():
            if (high.astype(np.int32) - low >= 1 << self.width).any():
                raise FormatError(f"its codes don't fit {self.width} bits")
            raise FormatError("it has zero points" if self.symmetric else "0 isn't among its codes")
        found: Levels = np.clip(numbers.zero, least, most).astype(np.int16)
        return found

    def linear_parts(self) -> tuple[LinearPart[IntegerParams], ...]:
        """Scale and offset, whose zero point is rounded, then the scale alone; nothing of a whole tensor."""
        if self.scope == TENSOR:
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
        if not (self.symmetric and self.scales.signed):
            scale = np.maximum(scale, np.float32(0))
        exponent = np.zeros(scale.shape, np.int32)
        return self.scales.store(denormalise(scale, exponent, self.scales.largest / (1 << self.width)))

    def _with_offset(self, scale: Floats, offset: Floats) -> IntegerParams:
        scale = self._storable(scale)
        with np.errstate(over="ignore"):
            zero = np.clip(np.rint(-offset / scale), 0, (1 << self.width) - 1)
        return IntegerParams(scale, zero.astype(np.uint8))
