"""MXFP4 as GGUF stores it: 32 columns of FP4 E2M1 with one power of two.

    byte 0       e, the scale is 2**(e - 127) (E8M0, bias 127)
    byte 1 + j   | code[j + 16] : 4 | code[j] : 4 |, code = sign : 1, exponent : 2, mantissa : 1

Source: OCP Microscaling Formats (MX) specification v1.0, sections 5.3.3, 5.4.1 and 6.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from fewbits import _native
from fewbits.errors import FormatError
from fewbits.formats.block_layout import BlockLayout, fold, run
from fewbits.formats.format import Codes, Floats, Format, LinearPart, Params, QTensor
from fewbits.formats.gguf_block import BlockFormat
from fewbits.formats.gguf_search import LookupGrid, Tile
from fewbits.formats.minifloat import E2M1
from fewbits.formats.numbers import FloatNumbers, Numbers, UnlikeError
from fewbits.formats.registry import register

# Twice the values of E2M1, so that they are integers; the scale is halved in turn.
DOUBLED = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)

# 12 * 2**(252 - 128) is the largest power-of-two scale whose values all stay finite in float32.
LARGEST_EXPONENT = 252

# Exponents tried, relative to the specification's floor(log2(largest)) - 2, which comes first. There are only
# three in question: one less clips the largest weight to less than half its size, one more loses a bit.
# With importance the largest weight may matter little.
OFFSETS = (0, 1, -1)
WEIGHTED_OFFSETS = (0, 1, -1, -2, -3)


@dataclass(frozen=True)
class ExponentParams(Params):
    """One power of two per block.

    Attributes:
        e: uint8 [R], the biased exponent.
    """

    e: Codes


class MXFP4Format(BlockFormat[ExponentParams]):
    """w = 2**(e - 128) * doubled value of the code."""

    params_type: ClassVar[type[Params]] = ExponentParams
    largest = np.finfo(np.float32).max
    grid = LookupGrid(DOUBLED)
    layout = BlockLayout(17, [run(1, 8, byte=0, of_scales=True), *fold(32, 4, 16, byte=1)], scales=1)

    def _search(self, weight: Floats, importance: Floats | None) -> ExponentParams:
        largest = np.abs(weight).max(axis=0)
        first = np.where(largest > 0, np.frexp(largest)[1] + 124, 0)
        np.clip(first, 0, LARGEST_EXPONENT, out=first)
        tile = Tile(_to_steps(weight, first), importance, self.grid)
        best_e, best = first, tile.error(np.ones_like(largest))
        for offset in (OFFSETS if importance is None else WEIGHTED_OFFSETS)[1:]:
            e = np.clip(first + offset, 0, LARGEST_EXPONENT)
            error = tile.error(np.ldexp(np.float32(1), e - first))
            better = error < best
            best_e, best = np.where(better, e, best_e), np.where(better, error, best)
        return ExponentParams(best_e[0].astype(np.uint8))

    def round(self, weight: Floats, params: ExponentParams, column: int = 0) -> Codes:
        """Nearest codes: float32 [R, S] -> uint8 [R, S]."""
        del column  # all columns share the exponent
        with np.errstate(over="ignore"):  # infinitely many steps are clipped like many
            return self.grid.encode(_to_steps(weight, params.e.astype(np.int32)[:, None]))

    def decode(self, codes: Codes, params: ExponentParams, column: int = 0) -> Floats:
        """Scale times value: uint8 [R, S] -> float32 [R, S]; infinite only where `fit` never goes."""
        del column
        values = self.grid.decode(codes)
        with np.errstate(over="ignore"):
            scale = np.ldexp(np.float32(1), params.e.astype(np.int32) - 128)
            return np.multiply(values, scale[:, None], out=values)

    def _kernel_search(self, *, weighted: bool) -> _native.ExponentSearch:
        return _native.ExponentSearch(WEIGHTED_OFFSETS if weighted else OFFSETS, LARGEST_EXPONENT)

    def _stored(self, params: ExponentParams) -> tuple[tuple[Floats, ...], Codes]:
        return (), params.e[:, None]

    def _restored(self, halves: tuple[Floats, ...], scales: Codes) -> ExponentParams:
        del halves
        return ExponentParams(scales[:, 0].copy())

    def numbers(self, tensor: QTensor) -> FloatNumbers:
        """See `Format.numbers`."""
        params = tensor.params
        assert isinstance(params, ExponentParams)
        return exponent_numbers(tensor, params, self.block)

    def take_over(self, numbers: Numbers) -> QTensor:
        """See `Format.take_over`."""
        return exponents_taken_over(self, numbers)

    def linear_parts(self) -> tuple[LinearPart[ExponentParams], ...]:
        """The power of two, if a neighbour of it is better."""
        return (
            LinearPart(
                slice(0, self.block),
                lambda params: (np.ldexp(np.float32(1), params.e.astype(np.int32) - 128),),
                lambda codes, _: (self.grid.decode(codes),),
                lambda _, scales: ExponentParams(_nearest_exponent(scales[0])),
            ),
        )


def exponent_numbers(tensor: QTensor, params: ExponentParams, block: int) -> FloatNumbers:
    """What a tensor in MXFP4 says; its codes are those of E2M1."""
    step = np.ldexp(np.float32(1), params.e.astype(np.int32) - 127)
    return FloatNumbers(E2M1, block, tensor.codes, step.reshape(tensor.shape[0], -1))


def exponents_taken_over(fmt: Format[ExponentParams], numbers: Numbers) -> QTensor:
    """Numbers in MXFP4, exactly.

    Raises:
        FormatError: other numbers than E2M1's, or steps that aren't powers of two.
    """
    if not isinstance(numbers, FloatNumbers) or numbers.grid is not E2M1:
        raise UnlikeError("its numbers aren't E2M1")
    step = np.repeat(numbers.step, numbers.block // fmt.block, axis=1)
    mantissa, exponent = np.frexp(step)
    e = exponent.astype(np.int32) + 126
    if (mantissa != 0.5).any() or e.min() < 0 or e.max() > LARGEST_EXPONENT:
        raise FormatError("its steps aren't powers of two")
    return QTensor(fmt, numbers.codes.shape, numbers.codes, ExponentParams(e.astype(np.uint8).reshape(-1)))


def _nearest_exponent(scale: Floats) -> Codes:
    """Biased exponents of the powers of two nearest in ratio, the smallest for what isn't positive."""
    power = np.rint(np.log2(np.maximum(scale, np.float32(2.0**-126))))
    exponents: Codes = np.clip(power + 128, 0, LARGEST_EXPONENT).astype(np.uint8)
    return exponents


def _to_steps(weight: Floats, e: npt.NDArray[np.int32]) -> Floats:
    """Weight / 2**(e - 128), in two factors because 2**128 is no float32."""
    power = 128 - e
    steps: Floats = weight * np.ldexp(np.float32(1), power // 2)
    np.multiply(steps, np.ldexp(np.float32(1), power - power // 2), out=steps)
    return steps


MXFP4 = register(MXFP4Format("MXFP4"))
