"""What a format's codes and parameters say, in words that other formats understand, so that they can take it over.

    StepNumbers    value = scale * (code - zero), or scale * code + bias      integers
    FloatNumbers   value = number of a floating-point grid * step             FP4, FP8

Containers round products to the dtype of their runtime's activations, or don't: that is the runtime's, and isn't part
of the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fewbits.errors import FormatError
from fewbits.formats.format import Codes, Floats, Format, QTensor
from fewbits.formats.minifloat import Minifloat
from fewbits.formats.scale_type import ScaleType

Levels = npt.NDArray[np.int16]


class UnlikeError(FormatError):
    """Groups or kinds of numbers that are others than the format has, whatever is in them."""


def _divided(array: npt.NDArray[Any], own: int, wanted: int) -> npt.NDArray[Any]:
    """Parameters [N, K / own] of smaller blocks [N, K / wanted]."""
    return np.repeat(array, own // wanted, axis=1)


@dataclass(frozen=True)
class StepNumbers:
    """Integers times a scale for each block of columns.

    Attributes:
        block: columns that share a scale.
        levels: int16 [N, K]; codes less zero points, or codes where there is a bias.
        scale: float32 [N, K / block].
        zero: int16 [N, K / block], the zero points, by which levels become codes again.
        bias: float32 [N, K / block], which is added to the product; None for none.
    """

    block: int
    levels: Levels
    scale: Floats
    zero: Levels
    bias: Floats | None = None

    def in_blocks(self, block: int) -> StepNumbers:
        """The same numbers with smaller blocks.

        Raises:
            FormatError: these blocks can't be cut into those.
        """
        if block == self.block:
            return self
        if self.block % block:
            raise UnlikeError(f"groups of {self.block} don't divide into groups of {block}")
        scale, zero = (_divided(a, self.block, block) for a in (self.scale, self.zero))
        bias = None if self.bias is None else _divided(self.bias, self.block, block)
        return StepNumbers(block, self.levels, scale, zero, bias)

    @cached_property
    def extremes(self) -> tuple[Levels, Levels]:
        """The least and the largest level of each block, int16 [N, K / block]."""
        blocks = self.levels.reshape(len(self.levels), -1, self.block)
        return blocks.min(axis=2), blocks.max(axis=2)

    def values(self) -> npt.NDArray[np.float64]:
        """Exact: a product of 9 and 24 bits; float64 [N, K]."""
        scale = np.repeat(self.scale.astype(np.float64), self.block, axis=1)
        values: npt.NDArray[np.float64] = self.levels * scale
        return (
            values
            if self.bias is None
            else values + np.repeat(self.bias.astype(np.float64), self.block, axis=1)
        )

    def codes_and_bias(self) -> tuple[Levels, Floats]:
        """Codes int16 [N, K] and what is added to their products with the scales, float32 [N, K / block].

        Raises:
            FormatError: some zero point times its scale isn't a float32.
        """
        if self.bias is not None:
            return self.levels, self.bias
        exact = -self.zero.astype(np.float64) * self.scale
        bias = exact.astype(np.float32)
        if (bias != exact).any():
            raise FormatError("its zero points times its scales aren't numbers")
        return self.levels + np.repeat(self.zero, self.block, axis=1), bias

    def with_zero_points(self) -> StepNumbers:
        """The same numbers without a bias.

        Raises:
            FormatError: some bias isn't a whole number of steps.
        """
        if self.bias is None:
            return self
        with np.errstate(divide="ignore", invalid="ignore"):
            zero = np.where(
                self.scale == 0, np.float32(0), np.rint(-self.bias.astype(np.float64) / self.scale)
            )
        exact = (zero * self.scale.astype(np.float64) == -self.bias.astype(np.float64)) & (
            np.abs(zero) < 1 << 14
        )
        if not exact.all():
            raise FormatError("its biases aren't whole numbers of steps")
        zero = zero.astype(np.int16)
        return StepNumbers(self.block, self.levels - np.repeat(zero, self.block, axis=1), self.scale, zero)


@dataclass(frozen=True)
class FloatNumbers:
    """Codes of a floating-point grid times a step for each block of columns.

    Attributes:
        grid: of the codes.
        block: columns that share a step.
        codes: uint8 [N, K].
        step: float32 [N, K / block].
        scale: of NVFP4: the block's scale, a code of E4M3, uint8 [N, K / block]; else None.
        global_scale: of NVFP4: what block scales are divided by; else None.
    """

    grid: Minifloat
    block: int
    codes: Codes
    step: Floats
    scale: Codes | None = None
    global_scale: np.float32 | None = None

    def values(self) -> npt.NDArray[np.float64]:
        """Exact: a product of 4 and 24 bits; float64 [N, K]."""
        step = np.repeat(self.step.astype(np.float64), self.block, axis=1)
        values: npt.NDArray[np.float64] = self.grid.values[self.codes] * step
        return values


Numbers = StepNumbers | FloatNumbers


def affine_numbers(block: int, tensor: QTensor, scale: Floats, bias: Floats) -> StepNumbers:
    """What a tensor says whose values are scale * code + bias, both float32 [blocks]."""
    scale, bias = (a.reshape(tensor.shape[0], -1) for a in (scale, bias))
    return StepNumbers(block, tensor.codes.astype(np.int16), scale, np.zeros(scale.shape, np.int16), bias)


def affine_taken_over(
    fmt: Format[Any], numbers: Numbers, largest: int, scales: ScaleType
) -> tuple[Codes, Floats, Floats]:
    """Codes uint8 [N, K], scales and biases float32 [blocks] by which a format has these numbers, exactly.

    Args:
        fmt: the format, with `block` columns in a block.
        numbers: of some rows.
        largest: of its codes, which begin at 0.
        scales: what its scales and biases can be.

    Raises:
        FormatError: it can't hold them.
    """
    if not isinstance(numbers, StepNumbers):
        raise UnlikeError("its numbers aren't integers")
    numbers = numbers.in_blocks(fmt.block)
    codes, bias = numbers.codes_and_bias()
    if codes.min() < 0 or codes.max() > largest:
        raise FormatError(f"its codes don't fit {largest.bit_length()} bits")
    for what, array in (("scales", numbers.scale), ("zero points times its scales", bias)):
        if (scales.round(array) != array).any():
            raise FormatError(f"its {what} aren't numbers of {scales.name}")
    return codes.astype(np.uint8), numbers.scale.reshape(-1), bias.reshape(-1)


def numbers_of(tensor: QTensor) -> Numbers:
    """What a quantized tensor says.

    Raises:
        FormatError: its format has no numbers that others understand.
    """
    return tensor.format.numbers(tensor)


def taken_over(
    numbers: Numbers, fmt: Format[Any], shape: tuple[int, int], *, checked: bool = True
) -> QTensor:
    """These numbers in a format, exactly.

    Args:
        numbers: of some rows.
        fmt: the format.
        shape: [N, K] of these rows.
        checked: whether every value is compared; no where nothing is made of it.

    Raises:
        FormatError: it can't hold them; the message says why in a few words.
    """
    block = fmt.block_of(shape[1])
    if block > numbers.block or numbers.block % block:
        raise UnlikeError(f"groups of {numbers.block} aren't groups of {block}")
    made = fmt.take_over(numbers)
    if checked and not np.array_equal(fmt.numbers(made).values(), numbers.values()):
        raise AssertionError(f"{fmt.name} took numbers over that it doesn't hold")
    return made
