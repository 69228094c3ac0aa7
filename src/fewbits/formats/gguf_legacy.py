"""GGUF's formats of 32 columns: Q8_0, Q5_0, Q4_0 (a scale) and Q5_1, Q4_1 (a scale and a minimum).

Layouts are drawn in docs/formats.md; all integers are little-endian, d and m are float16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fewbits import _native
from fewbits.errors import FormatError
from fewbits.formats.block_layout import BlockLayout, fold, run
from fewbits.formats.format import Codes, Floats, LinearPart, Params, QTensor, ScaledGrid
from fewbits.formats.gguf_block import BlockFormat, Grid, reciprocal
from fewbits.formats.gguf_search import (
    Tile,
    UniformGrid,
    cut_ranges,
    fan,
    search_affine,
    search_scale,
    settle_affine,
    settle_scale,
    signed_peak,
    trims,
)
from fewbits.formats.minifloat import round_float16
from fewbits.formats.numbers import Numbers, StepNumbers, UnlikeError, affine_numbers, affine_taken_over
from fewbits.formats.registry import register
from fewbits.formats.scale_type import FLOAT16


# The codes q[0…31] of a block, by how many bytes hold them:
#   32  Q8_0        int8 q[j] - 128 in byte j
#   16  Q4_0 Q4_1   byte j:  | q[j + 16] : 4 | q[j] : 4 |   (high bits left)
#   20  Q5_0 Q5_1   4 bytes: bit j of the little-endian uint32 = bit 4 of q[j]
#                   16 bytes as in Q4_0 with the low four bits
def short_layout(nbytes: int, halves: int) -> BlockLayout:
    """The layout of a block of 32 codes, after one or two float16."""
    start = 2 * halves
    places = tuple(range(0, start, 2))
    if nbytes - start == 32:
        return BlockLayout(nbytes, [run(32, 8, byte=start)], halves=places, flipped=0x80)
    pieces = fold(32, 4, 16, byte=nbytes - 16)
    if nbytes - start == 20:
        pieces += fold(32, 1, 1, byte=start, shift=4)
    return BlockLayout(nbytes, pieces, halves=places)


@dataclass(frozen=True)
class ScaleParams(Params):
    """One scale per block.

    Attributes:
        d: float32 [R], exactly a float16 and possibly negative.
    """

    d: Floats


@dataclass(frozen=True)
class AffineParams(Params):
    """Scale and minimum of each block.

    Attributes:
        d: float32 [R], exactly a float16.
        m: float32 [R], exactly a float16.
    """

    d: Floats
    m: Floats


# Where the search puts the weight of largest magnitude, in steps of the grid. Beyond the grid's end it is
# clipped, which pays when the others gain more; the other sign uses the grid's shorter side. Each candidate
# costs about 1 ns per weight. With importance the optimum lies farther off, and there is less hurry.
Q8_0_PLACES = fan((127.4, 121, 4))  # more would halve the speed of the fastest format
Q8_0_WEIGHTED = fan((127.4, 90, 32))
Q5_0_PLACES = fan((-17, -12, 12), (11.5, 16, 8))
Q5_0_WEIGHTED = fan((-17, -9, 24), (8, 16, 16))
# Without importance the least squared error isn't the least loss here: KL of SmolLM2-135M 0.50, 0.42 without a search
# (docs/log.md).
Q4_0_PLACES: tuple[float, ...] = ()
Q4_0_WEIGHTED = fan((-9, -4, 24), (3.5, 8, 16))

# Steps cut off at both ends of the range. Cuts 0.3 apart instead of 0.45 gained 0.4 % at half the speed.
CUTS = (-0.3, 1.7, 6)
WEIGHTED_CUTS = (-0.3, 2.5, 8)

# Rounds of nearest codes and closed form: the gain of another one is below 0.2 %.
REFITS = 3


class ScaleFormat(BlockFormat[ScaleParams]):
    """w = d * level of the code.

    Args:
        name: of the format.
        grid: levels of the codes.
        plain: where plain rounding puts the weight of largest magnitude.
        places: where the search puts it, see `search_scale`: without and with importance; none for plain rounding.
        refits: rounds after the search, see `settle_scale`.
    """

    params_type: ClassVar[type[Params]] = ScaleParams

    def __init__(
        self,
        name: str,
        grid: Grid,
        plain: float,
        places: tuple[tuple[float, ...], tuple[float, ...]],
        refits: int = REFITS,
    ) -> None:
        super().__init__(name)
        self.layout = short_layout(self.block_bytes, 1)
        self.grid, self.plain, self.places, self.refits = grid, plain, places, refits

    def _search(self, weight: Floats, importance: Floats | None) -> ScaleParams:
        tile = Tile(weight, importance, self.grid)
        start = round_float16(signed_peak(weight) / np.float32(self.plain))
        places = self.places[importance is not None]
        if not places:
            return ScaleParams(start[0])
        scale, _ = search_scale(tile, places)
        return ScaleParams(settle_scale(tile, start, scale, self.refits)[0])

    def _kernel_search(self, *, weighted: bool) -> _native.ScaleSearch:
        return _native.ScaleSearch(self.plain, self.places[weighted], self.refits)

    def round(self, weight: Floats, params: ScaleParams, column: int = 0) -> Codes:
        """Nearest codes: float32 [R, S] -> uint8 [R, S]."""
        del column  # all columns share the scale
        with np.errstate(over="ignore"):  # infinitely many steps are clipped like many
            return self.grid.encode(weight * reciprocal(params.d)[:, None])

    def decode(self, codes: Codes, params: ScaleParams, column: int = 0) -> Floats:
        """Scale times level: uint8 [R, S] -> float32 [R, S]."""
        del column
        values = self.grid.decode(codes)
        return np.multiply(values, params.d[:, None], out=values)

    def scaled_grid(self, params: ScaleParams, groups: slice) -> ScaledGrid:
        """See `Format.scaled_grid`."""
        del groups  # there is one
        return self._scaled(params.d[:, None])

    def linear_parts(self) -> tuple[LinearPart[ScaleParams], ...]:
        """The scale."""
        return (
            LinearPart(
                slice(0, self.block),
                lambda params: (params.d,),
                lambda codes, _: (self.grid.decode(codes),),
                lambda _, scales: ScaleParams(round_float16(scales[0])),
            ),
        )

    def numbers(self, tensor: QTensor) -> StepNumbers:
        """See `Format.numbers`.

        Raises:
            FormatError: the codes stand for a table's values.
        """
        if self.grid.table.size:
            return super().numbers(tensor)  # type: ignore[return-value]  # it raises
        params = tensor.params
        assert isinstance(params, ScaleParams)
        scale = params.d.reshape(tensor.shape[0], -1)
        levels = tensor.codes.astype(np.int16) - np.int16(self.grid.zero)
        return StepNumbers(self.block, levels, scale, np.full(scale.shape, np.int16(self.grid.zero)))

    def take_over(self, numbers: Numbers) -> QTensor:
        """See `Format.take_over`."""
        if self.grid.table.size:
            return super().take_over(numbers)
        if not isinstance(numbers, StepNumbers):
            raise UnlikeError("its numbers aren't integers")
        numbers = numbers.with_zero_points().in_blocks(self.block)
        if numbers.levels.min() < self.grid.low or numbers.levels.max() > self.grid.high:
            raise FormatError(f"its codes don't fit {int(self.grid.low)} … {int(self.grid.high)}")
        if (round_float16(numbers.scale) != numbers.scale).any():
            raise FormatError("its scales aren't numbers of F16")
        codes = (numbers.levels + np.int16(self.grid.zero)).astype(np.uint8)
        return QTensor(self, numbers.levels.shape, codes, ScaleParams(numbers.scale.reshape(-1)))

    def _stored(self, params: ScaleParams) -> tuple[tuple[Floats, ...], Codes]:
        return (params.d,), np.empty((len(params.d), 0), np.uint8)

    def _restored(self, halves: tuple[Floats, ...], scales: Codes) -> ScaleParams:
        del scales
        return ScaleParams(*halves)


class AffineFormat(BlockFormat[AffineParams]):
    """w = d * code + m."""

    params_type: ClassVar[type[Params]] = AffineParams

    def __init__(self, name: str, highest: int) -> None:
        super().__init__(name)
        self.layout = short_layout(self.block_bytes, 2)
        self.grid = UniformGrid(0, highest)
        self.cuts = (trims(*CUTS, highest), trims(*WEIGHTED_CUTS, highest))

    def _search(self, weight: Floats, importance: Floats | None) -> AffineParams:
        low, high = weight.min(axis=0), weight.max(axis=0)
        middle = (low + high) / 2  # a block far from zero would lose its differences in the sums
        tile = Tile(weight - middle, importance, self.grid)
        found = search_affine(tile, self.cuts[importance is not None], zero_in_range=False)
        tile = Tile(weight, importance, self.grid)
        plain = round_float16((high - low) / self.grid.high), round_float16(low)
        scale, bias = settle_affine(tile, plain, (found[0], found[1] + middle), REFITS)
        return AffineParams(scale[0], bias[0])

    def _kernel_search(self, *, weighted: bool) -> _native.AffineSearch:
        return _native.AffineSearch(*cut_ranges(self.cuts[weighted], self.grid.high), REFITS)

    def round(self, weight: Floats, params: AffineParams, column: int = 0) -> Codes:
        """Nearest codes: float32 [R, S] -> uint8 [R, S]."""
        del column
        with np.errstate(over="ignore"):
            steps = weight - params.m[:, None]
            np.multiply(steps, reciprocal(params.d)[:, None], out=steps)
            return self.grid.encode(steps)

    def decode(self, codes: Codes, params: AffineParams, column: int = 0) -> Floats:
        """Scale times code plus minimum: uint8 [R, S] -> float32 [R, S]."""
        del column
        values = self.grid.decode(codes)
        np.multiply(values, params.d[:, None], out=values)
        return np.add(values, params.m[:, None], out=values)

    def scaled_grid(self, params: AffineParams, groups: slice) -> ScaledGrid:
        """See `Format.scaled_grid`."""
        del groups  # there is one
        return self._scaled(params.d[:, None], -params.m[:, None])

    def linear_parts(self) -> tuple[LinearPart[AffineParams], ...]:
        """Scale and minimum together."""
        return (
            LinearPart(
                slice(0, self.block),
                lambda params: (params.d, params.m),
                lambda codes, _: (self.grid.decode(codes), np.ones(codes.shape, np.float32)),
                lambda _, scales: AffineParams(round_float16(scales[0]), round_float16(scales[1])),
            ),
        )

    def numbers(self, tensor: QTensor) -> StepNumbers:
        """See `Format.numbers`."""
        params = tensor.params
        assert isinstance(params, AffineParams)
        return affine_numbers(self.block, tensor, params.d, params.m)

    def take_over(self, numbers: Numbers) -> QTensor:
        """See `Format.take_over`; zero points become minima."""
        codes, d, m = affine_taken_over(self, numbers, int(self.grid.high), FLOAT16)
        return QTensor(self, (len(codes), codes.shape[1]), codes, AffineParams(d, m))

    def _stored(self, params: AffineParams) -> tuple[tuple[Floats, ...], Codes]:
        return (params.d, params.m), np.empty((len(params.d), 0), np.uint8)

    def _restored(self, halves: tuple[Floats, ...], scales: Codes) -> AffineParams:
        del scales
        return AffineParams(*halves)


# llama.cpp never writes -128 in Q8_0, and some of its kernels negate codes as int8: it is read, not written.
Q8_0 = register(
    ScaleFormat("Q8_0", UniformGrid(-127, 127, zero=128), 127, (Q8_0_PLACES, Q8_0_WEIGHTED), refits=1)
)
Q5_1 = register(AffineFormat("Q5_1", 31))
Q5_0 = register(ScaleFormat("Q5_0", UniformGrid(-16, 15), -16, (Q5_0_PLACES, Q5_0_WEIGHTED)))
Q4_1 = register(AffineFormat("Q4_1", 15))
Q4_0 = register(ScaleFormat("Q4_0", UniformGrid(-8, 7), -8, (Q4_0_PLACES, Q4_0_WEIGHTED)))
