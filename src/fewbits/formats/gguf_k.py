"""GGUF's k-quants: blocks of 256 columns whose groups have integer sub-scales of one or two float16 scales.

    Q6_K Q3_K        w = (d * sub) * (code - zero)         16 groups of 16
    Q2_K             w = (d * sub) * code - dmin * low     16 groups of 16
    Q5_K Q4_K        w = (d * sub) * code - dmin * low      8 groups of 32

Layouts are drawn in docs/formats.md and below; all integers are little-endian, d and dmin are float16.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fewbits import _native
from fewbits.formats.block_layout import BlockLayout, fold, run
from fewbits.formats.format import Codes, Floats, LinearPart, Params, ScaledGrid
from fewbits.formats.gguf_block import BlockFormat, Grid, per_column, reciprocal
from fewbits.formats.gguf_search import Tile, UniformGrid, cut_ranges, fan, trims
from fewbits.formats.gguf_super_search import (
    GROUP_WINDOW,
    search_both_ways,
    search_group_pair,
    search_group_scale,
    search_super_scale,
)
from fewbits.formats.minifloat import round_float16
from fewbits.formats.registry import register

# Candidates, as in gguf_legacy.py. The first place of a signed grid is plain rounding.
Q6_K_PLACES = fan((-32, -32, 1), (-33, -24, 12), (24, 32, 10))
Q6_K_WEIGHTED = fan((-32, -32, 1), (-33, -16, 26), (16, 32, 24))
Q3_K_PLACES = fan((-4, -4, 1), (-4.6, -2.6, 9), (2.2, 4, 6))

# The largest sub-scale of a block needn't take the end of its range: another d may suit the others better.
INT8_PLACES = fan((-128, -128, 1), (-130, -112, 10), (112, 130, 10))
INT6_PLACES = fan((-32, -32, 1), (-33.5, -27, 10), (27, 32.5, 10))
UINT6_PLACES = fan((66, 53, 8))
UINT4_PLACES = fan((15.75, 12, 8))

# Sub-scales tried in each round: as far from the current one as this, 0 for all 64 (see `_move_subs`).
# With importance a group has many good scales far apart, and only trying all finds the best.
NEAR = (2, 1)
WIDE = (4, 2, 1)
ALL = (0, 1)

# Cuts in steps of the grid (see `trims`). At two bits a step is a third of the range, so cuts are finer, and
# with importance deeper: most of a group may be cut off.
K_CUTS = (-0.3, 1.5, 5)
K_WEIGHTED_CUTS = (-0.3, 1.8, 7)
Q2_K_CUTS = (-0.1, 0.9, 5)
Q2_K_WEIGHTED_CUTS = (-0.1, 1.6, 8)

# Rounds of moves and refits; a third gained 0.1 to 0.4 %.
ROUNDS = 2


@dataclass(frozen=True)
class SuperScaleParams(Params):
    """Scale of group i of block r = d[r] * sub[r, i].

    Attributes:
        d: float32 [R], exactly a float16, possibly negative.
        sub: int8 [R, G].
    """

    d: Floats
    sub: npt.NDArray[np.int8]


@dataclass(frozen=True)
class SuperAffineParams(Params):
    """Scale of group i of block r = d[r] * sub[r, i], what is subtracted = dmin[r] * low[r, i].

    Attributes:
        d: float32 [R], exactly a float16, possibly negative.
        dmin: float32 [R], exactly a float16, possibly negative.
        sub: uint8 [R, G].
        low: uint8 [R, G].
    """

    d: Floats
    dmin: Floats
    sub: Codes
    low: Codes


class SuperScaleFormat(BlockFormat[SuperScaleParams]):
    """w = (d * sub) * level of the code.

    Attributes:
        grid: levels of the codes.
        limits: smallest and largest sub.
        places: of the largest weight of a group, without and with importance.
        super_places: of the largest scale of a block.
        windows: sub-scales tried, without and with importance.
    """

    params_type: ClassVar[type[Params]] = SuperScaleParams
    grid: Grid
    limits: tuple[int, int]
    places: tuple[tuple[float, ...], tuple[float, ...]]
    super_places: tuple[float, ...]
    windows: tuple[tuple[int, ...], tuple[int, ...]]

    def _search(self, weight: Floats, importance: Floats | None) -> SuperScaleParams:
        tile = Tile(weight, importance, self.grid)
        weighted = importance is not None
        found = search_super_scale(
            tile, self.places[weighted], self.super_places, self.limits, self.windows[weighted]
        )
        return SuperScaleParams(found.d, np.ascontiguousarray(found.sub.T.astype(np.int8)))

    def _kernel_search(self, *, weighted: bool) -> _native.SuperScaleSearch:
        places, windows = self.places[weighted], self.windows[weighted]
        return _native.SuperScaleSearch(places, self.super_places, *self.limits, windows, GROUP_WINDOW)

    def _stored(self, params: SuperScaleParams) -> tuple[tuple[Floats, ...], Codes]:
        return (params.d,), params.sub.view(np.uint8)

    def _restored(self, halves: tuple[Floats, ...], scales: Codes) -> SuperScaleParams:
        return SuperScaleParams(halves[0], scales.view(np.int8))

    def round(self, weight: Floats, params: SuperScaleParams, column: int = 0) -> Codes:
        """Nearest codes: float32 [R, S] -> uint8 [R, S]."""
        inverse = reciprocal(_scales(params))
        with np.errstate(over="ignore"):  # infinitely many steps are clipped like many
            return self.grid.encode(weight * per_column(inverse, column, weight.shape[1], self.group))

    def decode(self, codes: Codes, params: SuperScaleParams, column: int = 0) -> Floats:
        """(d * sub) * level: uint8 [R, S] -> float32 [R, S]."""
        values = self.grid.decode(codes)
        scale = per_column(_scales(params), column, codes.shape[1], self.group)
        return np.multiply(values, scale, out=values)

    def scaled_grid(self, params: SuperScaleParams, groups: slice) -> ScaledGrid:
        """See `Format.scaled_grid`."""
        return self._scaled(params.d[:, None] * params.sub[:, groups].astype(np.float32))

    def linear_parts(self) -> tuple[LinearPart[SuperScaleParams], ...]:
        """The sub-scale of each group, then d."""
        groups = self.block // self.group
        whole = LinearPart[SuperScaleParams](
            slice(0, self.block),
            lambda params: (params.d,),
            lambda codes, params: (
                self.grid.decode(codes) * np.repeat(params.sub.astype(np.float32), self.group, axis=1),
            ),
            lambda params, scales: replace(params, d=round_float16(scales[0])),
        )
        return (*map(self._sub_part, range(groups)), whole)

    def _sub_part(self, group: int) -> LinearPart[SuperScaleParams]:
        low, high = self.limits

        def put(params: SuperScaleParams, scales: tuple[Floats, ...]) -> SuperScaleParams:
            return replace(params, sub=_with_column(params.sub, group, np.clip(scales[0], low, high)))

        return LinearPart(
            slice(group * self.group, (group + 1) * self.group),
            lambda params: (params.sub[:, group].astype(np.float32),),
            lambda codes, params: (self.grid.decode(codes) * params.d[:, None],),
            put,
        )

    def fit_group(
        self, weight: Floats, params: SuperScaleParams, group: int, importance: Floats | None = None
    ) -> SuperScaleParams:
        """Choose the sub-scale of one group anew, see `Format.fit_group`."""
        halves, scales = params.d[None], params.sub[:, group].astype(np.float32)[None]
        self.fit_group_natively(weight, importance, halves, scales)
        return replace(params, sub=_with_column(params.sub, group, scales[0]))

    def specified_fit_group(
        self, weight: Floats, params: SuperScaleParams, group: int, importance: Floats | None = None
    ) -> SuperScaleParams:
        """What `fit_group` finds, by its specification."""
        tile = Tile(*self._columns_first(weight, importance), self.grid)
        current = params.sub[:, group].astype(np.float32)
        places = self.places[importance is not None]
        sub = search_group_scale(tile, params.d, current, places, self.limits)
        return replace(params, sub=_with_column(params.sub, group, sub))


def _with_column(table: npt.NDArray[Any], group: int, column: Floats) -> npt.NDArray[Any]:
    """A copy of integers [R, G] with others, rounded, in one column."""
    table = table.copy()
    table[:, group] = np.rint(column)
    return table


def _scales(params: SuperScaleParams | SuperAffineParams) -> Floats:
    return params.d[:, None] * params.sub.astype(np.float32)


class SuperAffineFormat(BlockFormat[SuperAffineParams]):
    """w = (d * sub) * code - dmin * low.

    Attributes:
        grid: 0 … the highest code.
        highest: largest sub and low.
        cuts: see `trims`, without and with importance.
        super_places: of the largest scale and of the largest minimum of a block.
    """

    params_type: ClassVar[type[Params]] = SuperAffineParams
    grid: UniformGrid
    highest: int = 63
    cuts: tuple[tuple[tuple[float, float], ...], tuple[tuple[float, float], ...]]
    super_places: tuple[float, ...] = UINT6_PLACES

    def _search(self, weight: Floats, importance: Floats | None) -> SuperAffineParams:
        cuts = self.cuts[importance is not None]
        found = search_both_ways(weight, importance, self.grid, cuts, self.super_places, self.highest, ROUNDS)
        sub, low = (np.ascontiguousarray(part.T.astype(np.uint8)) for part in (found.sub, found.low))
        return SuperAffineParams(found.d, found.dmin, sub, low)

    def _kernel_search(self, *, weighted: bool) -> _native.SuperAffineSearch:
        ranges = cut_ranges(self.cuts[weighted], self.grid.high)
        return _native.SuperAffineSearch(*ranges, self.super_places, self.highest, ROUNDS)

    def _stored(self, params: SuperAffineParams) -> tuple[tuple[Floats, ...], Codes]:
        return (params.d, params.dmin), np.concatenate([params.sub, params.low], axis=1)

    def _restored(self, halves: tuple[Floats, ...], scales: Codes) -> SuperAffineParams:
        sub, low = (np.ascontiguousarray(part) for part in np.split(scales, 2, axis=1))
        return SuperAffineParams(halves[0], halves[1], sub, low)

    def round(self, weight: Floats, params: SuperAffineParams, column: int = 0) -> Codes:
        """Nearest codes: float32 [R, S] -> uint8 [R, S]."""
        count = weight.shape[1]
        with np.errstate(over="ignore"):
            steps = weight + per_column(_minima(params), column, count, self.group)
            inverse = per_column(reciprocal(_scales(params)), column, count, self.group)
            np.multiply(steps, inverse, out=steps)
            return self.grid.encode(steps)

    def decode(self, codes: Codes, params: SuperAffineParams, column: int = 0) -> Floats:
        """(d * sub) * code - dmin * low: uint8 [R, S] -> float32 [R, S]."""
        count = codes.shape[1]
        values = codes.astype(np.float32)
        np.multiply(values, per_column(_scales(params), column, count, self.group), out=values)
        return np.subtract(values, per_column(_minima(params), column, count, self.group), out=values)

    def scaled_grid(self, params: SuperAffineParams, groups: slice) -> ScaledGrid:
        """See `Format.scaled_grid`."""
        scale = params.d[:, None] * params.sub[:, groups].astype(np.float32)
        return self._scaled(scale, params.dmin[:, None] * params.low[:, groups].astype(np.float32))

    def linear_parts(self) -> tuple[LinearPart[SuperAffineParams], ...]:
        """Sub-scale and minimum of each group, then d and dmin."""
        whole = LinearPart[SuperAffineParams](
            slice(0, self.block),
            lambda params: (params.d, params.dmin),
            lambda codes, params: (
                self.grid.decode(codes) * np.repeat(params.sub.astype(np.float32), self.group, axis=1),
                -np.repeat(params.low.astype(np.float32), self.group, axis=1),
            ),
            lambda params, scales: replace(params, d=round_float16(scales[0]), dmin=round_float16(scales[1])),
        )
        return (*map(self._pair_part, range(self.block // self.group)), whole)

    def _pair_part(self, group: int) -> LinearPart[SuperAffineParams]:
        def put(params: SuperAffineParams, scales: tuple[Floats, ...]) -> SuperAffineParams:
            sub, low = (np.clip(numbers, 0, self.highest) for numbers in scales)
            return self._with_pair(params, group, sub, low)

        return LinearPart(
            slice(group * self.group, (group + 1) * self.group),
            lambda params: (params.sub[:, group].astype(np.float32), params.low[:, group].astype(np.float32)),
            lambda codes, params: (
                self.grid.decode(codes) * params.d[:, None],
                np.broadcast_to(-params.dmin[:, None], codes.shape),
            ),
            put,
        )

    @staticmethod
    def _with_pair(params: SuperAffineParams, group: int, sub: Floats, low: Floats) -> SuperAffineParams:
        sub_table, low_table = _with_column(params.sub, group, sub), _with_column(params.low, group, low)
        return replace(params, sub=sub_table, low=low_table)

    def fit_group(
        self, weight: Floats, params: SuperAffineParams, group: int, importance: Floats | None = None
    ) -> SuperAffineParams:
        """Choose sub-scale and minimum of one group anew, see `Format.fit_group`."""
        halves = np.stack([params.d, params.dmin])
        scales = np.stack([params.sub[:, group], params.low[:, group]]).astype(np.float32)
        self.fit_group_natively(weight, importance, halves, scales)
        return self._with_pair(params, group, *scales)

    def specified_fit_group(
        self, weight: Floats, params: SuperAffineParams, group: int, importance: Floats | None = None
    ) -> SuperAffineParams:
        """What `fit_group` finds, by its specification."""
        sign = np.where(params.d < 0, np.float32(-1), np.float32(1))
        tile = Tile(*self._columns_first(weight * sign[:, None], importance), self.grid)
        current = params.sub[:, group].astype(np.float32), params.low[:, group].astype(np.float32)
        steps = params.d * sign, params.dmin * sign
        found = search_group_pair(tile, steps, current, self.cuts[importance is not None], self.highest)
        return self._with_pair(params, group, *found)


def _minima(params: SuperAffineParams) -> Floats:
    return params.dmin[:, None] * params.low.astype(np.float32)


class Q6K(SuperScaleFormat):
    """Byte 0 ql[128], 128 qh[64], 192 sub[16] int8, 208 d.

    For each half of the block (128 codes c, 64 bytes of ql, 32 bytes of qh):
        ql[l], l < 64:  | c[l + 64] & 15 : 4 | c[l] & 15 : 4 |
        qh[l], l < 32:  | c[l + 96] >> 4 : 2 | c[l + 64] >> 4 : 2 | c[l + 32] >> 4 : 2 | c[l] >> 4 : 2 |
    """

    group = 16
    grid = UniformGrid(-32, 31)
    limits = (-128, 127)
    places = (Q6_K_PLACES, Q6_K_WEIGHTED)
    super_places = INT8_PLACES
    windows = (NEAR, WIDE)
    layout = BlockLayout(
        210,
        [
            *fold(256, 4, 64, byte=0),
            *fold(256, 2, 32, byte=128, shift=4),
            run(16, 8, byte=192, of_scales=True),
        ],
        halves=(208,),
        scales=16,
    )


class Q3K(SuperScaleFormat):
    """Byte 0 hmask[32], 32 qs[64], 96 subs[12], 108 d.

    hmask[l]: bit i = c[32i + l] >> 2. For each half of the block (128 codes c, 32 bytes of qs):
        qs[l]:  | c[l + 96] & 3 : 2 | c[l + 64] & 3 : 2 | c[l + 32] & 3 : 2 | c[l] & 3 : 2 |
    With s[i] = sub[i] + 32:
        subs[i], i < 8:      | s[i + 8] & 15 : 4 | s[i] & 15 : 4 |
        subs[8 + i], i < 4:  | s[i + 12] >> 4 : 2 | s[i + 8] >> 4 : 2 | s[i + 4] >> 4 : 2 | s[i] >> 4 : 2 |
    """

    group = 16
    grid = UniformGrid(-4, 3)
    limits = (-32, 31)
    places = (Q3_K_PLACES, Q3_K_PLACES)
    super_places = INT6_PLACES
    windows = (NEAR, ALL)
    layout = BlockLayout(
        110,
        [
            *fold(256, 1, 32, byte=0, shift=2),
            *fold(256, 2, 32, byte=32),
            *fold(16, 4, 8, byte=96, of_scales=True),
            *fold(16, 2, 4, byte=104, shift=4, of_scales=True),
        ],
        halves=(108,),
        scales=16,
        raised=32,
    )


class Q2K(SuperAffineFormat):
    """Byte 0 subs[16], 16 qs[64], 80 d, 82 dmin.

    subs[i]:  | low[i] : 4 | sub[i] : 4 |. For each half of the block (128 codes c, 32 bytes of qs):
        qs[l]:  | c[l + 96] : 2 | c[l + 64] : 2 | c[l + 32] : 2 | c[l] : 2 |
    """

    group = 16
    grid = UniformGrid(0, 3)
    highest = 15
    cuts = (trims(*Q2_K_CUTS, 3), trims(*Q2_K_WEIGHTED_CUTS, 3))
    super_places = UINT4_PLACES
    layout = BlockLayout(
        84,
        [*fold(32, 4, 16, byte=0, of_scales=True), *fold(256, 2, 32, byte=16)],
        halves=(80, 82),
        scales=32,
    )


# sub and low of eight groups, six bits each, in 12 bytes from byte 4 on:
#   byte i, i < 4:      | sub[i + 4] >> 4 : 2 | sub[i] : 6 |
#   byte 4 + i:         | low[i + 4] >> 4 : 2 | low[i] : 6 |
#   byte 8 + i:         | low[i + 4] & 15 : 4 | sub[i + 4] & 15 : 4 |
_PAIRS = (
    run(4, 6, byte=4, of_scales=True),
    run(4, 2, byte=4, first=4, shift=4, left=6, of_scales=True),
    run(4, 6, byte=8, first=8, of_scales=True),
    run(4, 2, byte=8, first=12, shift=4, left=6, of_scales=True),
    run(4, 4, byte=12, first=4, of_scales=True),
    run(4, 4, byte=12, first=12, left=4, of_scales=True),
)


class Q4K(SuperAffineFormat):
    """Byte 0 d, 2 dmin, 4 subs[12] (see `_PAIRS`), 16 qs[128].

    For each quarter of the block (64 codes c, 32 bytes of qs):  qs[l]:  | c[l + 32] : 4 | c[l] : 4 |
    """

    grid = UniformGrid(0, 15)
    cuts = (trims(*K_CUTS, 15), trims(*K_WEIGHTED_CUTS, 15))
    layout = BlockLayout(144, [*_PAIRS, *fold(256, 4, 32, byte=16)], halves=(0, 2), scales=16)


class Q5K(SuperAffineFormat):
    """Byte 0 d, 2 dmin, 4 subs[12] (see `_PAIRS`), 16 qh[32], 48 qs[128].

    qh[l]: bit i = c[32i + l] >> 4; qs as in Q4_K with the low four bits.
    """

    grid = UniformGrid(0, 31)
    cuts = (trims(*K_CUTS, 31), trims(*K_WEIGHTED_CUTS, 31))
    layout = BlockLayout(
        176,
        [*_PAIRS, *fold(256, 1, 32, byte=16, shift=4), *fold(256, 4, 32, byte=48)],
        halves=(0, 2),
        scales=16,
    )


Q6_K = register(Q6K("Q6_K"))
Q5_K = register(Q5K("Q5_K"))
Q4_K = register(Q4K("Q4_K"))
Q3_K = register(Q3K("Q3_K"))
Q2_K = register(Q2K("Q2_K"))
