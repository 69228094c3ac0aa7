"""Searches for blocks whose groups have integer sub-scales of one float16 scale (k-quants, IQ4_XS).

Three stages, each on whole tiles, shapes as in `gguf_block.py`:
1. For each group alone the best real-valued scale (and bias), with the curvature of its error there.
2. Many super-scales: round the sub-scales, and estimate what that costs from the curvature. This needs
   no weights, so hundreds of super-scales cost as much as a few looks at the weights.
3. From the best one on: try neighbours of every integer sub-scale with nearest codes and exact errors,
   then the closed form for the super-scales given the codes, and again. A block keeps the best it has seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from fewbits.formats.format import Floats
from fewbits.formats.gguf_block import Grid, reciprocal
from fewbits.formats.gguf_search import Tile, ratio, search_affine, search_scale, signed_peak, total
from fewbits.formats.minifloat import round_float16

# Sub-scales tried around the nearest one when a single group is fitted to a given d.
GROUP_WINDOW = 1


@dataclass(frozen=True)
class SuperScales:
    """Scale of a group = d * sub.

    Attributes:
        d: float32 [R], exactly a float16, possibly negative.
        sub: float32 [G, R], integers.
    """

    d: Floats
    sub: Floats


@dataclass(frozen=True)
class SuperAffine:
    """Scale of a group = d * sub, its bias = -(dmin * low).

    Attributes:
        d: float32 [R], exactly a float16.
        dmin: float32 [R], exactly a float16.
        sub: float32 [G, R], integers.
        low: float32 [G, R], integers.
    """

    d: Floats
    dmin: Floats
    sub: Floats
    low: Floats


def _nearest(numbers: Floats, step: Floats, low: int, high: int) -> Floats:
    """The integers nearest to numbers / step."""
    scaled = numbers * reciprocal(step)
    np.rint(scaled, out=scaled)
    return np.clip(scaled, np.float32(low), np.float32(high), out=scaled)


def search_super_scale(
    tile: Tile,
    places: tuple[float, ...],
    super_places: tuple[float, ...],
    limits: tuple[int, int],
    windows: Sequence[int],
) -> SuperScales:
    """Search d and sub of x ≈ d * sub * level.

    Args:
        tile: the weights.
        places: candidates of the group search, see `search_scale`; the first one is plain rounding.
        super_places: where in the range of sub the largest group scale is put to; the first is plain.
        limits: smallest and largest sub.
        windows: for each round of stage 3, how far from the current sub to look.
    """
    plain = _plain_super_scale(tile, places[0], super_places[0], limits)
    best_error = _sum_groups(tile.error(plain.d * plain.sub))
    best = plain
    scale, curvature = search_scale(tile, places)
    current = _rank_super_scales(scale, curvature, super_places, limits)
    for window in windows:
        current, error = _move_subs(tile, current, window, limits)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best = SuperScales(np.where(better, current.d, best.d), np.where(better, current.sub, best.sub))
        current = SuperScales(_refit_super_scale(tile, current), current.sub)
    return best


def _plain_super_scale(tile: Tile, place: float, super_place: float, limits: tuple[int, int]) -> SuperScales:
    scale = signed_peak(tile.weight) / np.float32(place)
    d = round_float16(signed_peak(scale) / np.float32(super_place))
    return SuperScales(d, _nearest(scale, d, *limits))


def _sum_groups(values: Floats) -> Floats:
    """[G, R] -> [R]."""
    return total(values.copy())


def _rank_super_scales(
    scale: Floats, curvature: Floats, super_places: tuple[float, ...], limits: tuple[int, int]
) -> SuperScales:
    """The super-scale with the least curvature * (rounded scale - scale)²."""
    peak = signed_peak(scale)
    costs = np.empty((len(super_places), *peak.shape), np.float32)
    for place, cost in zip(super_places, costs, strict=True):
        d = round_float16(peak / np.float32(place))
        off = d * _nearest(scale, d, *limits) - scale
        cost[...] = total(off * off * curvature)
    d = round_float16(peak / np.array(super_places, np.float32)[costs.argmin(axis=0)])
    return SuperScales(d, _nearest(scale, d, *limits))


def _move_subs(
    tile: Tile, current: SuperScales, window: int, limits: tuple[int, int]
) -> tuple[SuperScales, Floats]:
    """The best sub of each group within `window` of the current one (0: of all), and the block's error."""
    best_sub = current.sub
    best = tile.error(current.d * current.sub)
    lowest, highest = np.float32(limits[0]), np.float32(limits[1])
    around = current.sub if window else np.zeros_like(current.sub)
    for offset in range(-window, window + 1) if window else range(limits[0], limits[1] + 1):
        if offset == 0:
            continue
        sub = np.clip(around + np.float32(offset), lowest, highest)
        error = tile.error(current.d * sub)
        better = error < best
        best, best_sub = np.where(better, error, best), np.where(better, sub, best_sub)
    return SuperScales(current.d, best_sub), _sum_groups(best)


def _refit_super_scale(tile: Tile, current: SuperScales) -> Floats:
    """Closed form of d for the nearest codes at the current scales."""
    scale = current.d * current.sub
    tile.set_codes(reciprocal(scale))
    _, square = tile.code_moments()
    cross, _ = tile.residual_moments(scale)
    step = ratio(total(current.sub * cross), total(current.sub * current.sub * square))
    return round_float16(current.d + step)


def search_super_affine(
    tile: Tile,
    cuts: tuple[tuple[float, float], ...],
    super_places: tuple[float, ...],
    highest: int,
    rounds: int,
) -> tuple[SuperAffine, Floats]:
    """Search d, dmin, sub and low of x ≈ d * sub * q - dmin * low, q = 0 … n.

    Args:
        tile: the weights.
        cuts: candidates of the group search, see `search_affine`; the first one is plain rounding.
        super_places: where in the range of sub (and of low) the largest of a block is put to.
        highest: largest sub and low; the smallest is 0.
        rounds: rounds of stage 3.

    Returns:
        What was found, and its error Σ w (x - decoded)² in each block, [R].
    """
    best = _plain_super_affine(tile, highest)
    best_error = _sum_groups(tile.error(best.d * best.sub, -(best.dmin * best.low)))
    found = search_affine(tile, cuts, zero_in_range=True)
    current = _rank_super_affine(tile, *found, super_places, highest)
    for _ in range(rounds):
        current, error = _move_pairs(tile, current, highest)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best = _choose(better, current, best)
        current = _refit_super_affine(tile, current)
    return best, best_error


def _choose(first: npt.NDArray[np.bool_], yes: SuperAffine, no: SuperAffine) -> SuperAffine:
    return SuperAffine(
        np.where(first, yes.d, no.d),
        np.where(first, yes.dmin, no.dmin),
        np.where(first, yes.sub, no.sub),
        np.where(first, yes.low, no.low),
    )


def search_both_ways(
    weight: Floats,
    importance: Floats | None,
    grid: Grid,
    cuts: tuple[tuple[float, float], ...],
    super_places: tuple[float, ...],
    highest: int,
    rounds: int,
) -> SuperAffine:
    """`search_super_affine` of the weights and of their negatives, and for each block the better one.

    With d and dmin negative a group's values start at its maximum and go down, which is another grid, since
    what starts a group has fewer levels than what its codes span.
    """
    up, error_up = search_super_affine(Tile(weight, importance, grid), cuts, super_places, highest, rounds)
    mirrored = Tile(-weight, importance, grid)
    down, error_down = search_super_affine(mirrored, cuts, super_places, highest, rounds)
    return _choose(error_down < error_up, SuperAffine(-down.d, -down.dmin, down.sub, down.low), up)


def _plain_super_affine(tile: Tile, highest: int) -> SuperAffine:
    bottom = np.minimum(tile.weight.min(axis=0), 0)
    scale = (np.maximum(tile.weight.max(axis=0), 0) - bottom) / tile.grid.high
    d, dmin = round_float16(scale.max(axis=0) / highest), round_float16(-bottom.min(axis=0) / highest)
    return SuperAffine(d, dmin, _nearest(scale, d, 0, highest), _nearest(-bottom, dmin, 0, highest))


def _rank_super_affine(
    tile: Tile,
    scale: Floats,
    bias: Floats,
    ones: Floats,
    square: Floats,
    super_places: tuple[float, ...],
    highest: int,
) -> SuperAffine:
    """The super-scales with the least estimated cost; low is chosen after sub, which shifts its optimum."""
    weights = tile.importance_sum()
    lean = ones / weights
    variance = square - lean * ones
    peak, peak_low = scale.max(axis=0), (-bias).max(axis=0)
    least = np.full(peak.shape, np.inf, np.float32)
    best_d, best_dmin = np.zeros_like(peak), np.zeros_like(peak)
    for place in super_places:
        d = round_float16(peak / np.float32(place))
        off = d * _nearest(scale, d, 0, highest) - scale
        target = lean * off - bias
        of_scale = off * off * variance
        for place_low in super_places:
            dmin = round_float16(peak_low / np.float32(place_low))
            off_low = dmin * _nearest(target, dmin, 0, highest) - target
            cost = total(of_scale + off_low * off_low * weights)
            better = cost < least
            np.copyto(least, cost, where=better)
            np.copyto(best_d, d, where=better)
            np.copyto(best_dmin, dmin, where=better)
    sub = _nearest(scale, best_d, 0, highest)
    target = lean * (best_d * sub - scale) - bias
    return SuperAffine(best_d, best_dmin, sub, _nearest(target, best_dmin, 0, highest))


def _move_pairs(tile: Tile, current: SuperAffine, highest: int) -> tuple[SuperAffine, Floats]:
    """The best neighbours (sub ± 1, low ± 1) of each group, and the block's error."""
    d, dmin = current.d, current.dmin
    best_sub, best_low = current.sub, current.low
    best = tile.error(d * current.sub, -(dmin * current.low))
    for move, move_low in product((-1, 0, 1), repeat=2):
        if move == move_low == 0:
            continue
        sub = np.clip(current.sub + np.float32(move), 0, highest)
        low = np.clip(current.low + np.float32(move_low), 0, highest)
        error = tile.error(d * sub, -(dmin * low))
        better = error < best
        best = np.where(better, error, best)
        best_sub, best_low = np.where(better, sub, best_sub), np.where(better, low, best_low)
    return SuperAffine(d, dmin, best_sub, best_low), _sum_groups(best)


def _refit_super_affine(tile: Tile, current: SuperAffine) -> SuperAffine:
    """Closed form of d and dmin together, for the nearest codes at the current scales."""
    scale, bias = current.d * current.sub, -(current.dmin * current.low)
    tile.set_codes(reciprocal(scale), bias)
    _, square = tile.code_moments()
    ones, weights = tile.code_sum(), tile.importance_sum()
    cross, plain = tile.residual_moments(scale, bias)
    sub, low = current.sub, current.low
    a, b, c = total(sub * sub * square), total(sub * low * ones), total(low * low * weights)
    u, v = total(sub * cross), -total(low * plain)
    determinant = a * c - b * b
    regular = determinant > a * c * np.float32(1e-6)
    inverse = np.where(regular, 1 / np.where(regular, determinant, np.float32(1)), np.float32(0))
    step, step_low = (c * u + b * v) * inverse, (b * u + a * v) * inverse
    alone = ratio(u, a)
    return SuperAffine(
        round_float16(current.d + np.where(regular, step, alone)),
        round_float16(current.dmin + step_low),
        sub,
        low,
    )


def search_group_scale(
    tile: Tile, d: Floats, sub: Floats, places: tuple[float, ...], limits: tuple[int, int]
) -> Floats:
    """The best sub-scale of one group when d is given.

    Args:
        tile: the group's weights, [g, 1, R].
        d: float32 [R].
        sub: the current sub-scale, float32 [R], which the result may not be worse than.
        places: candidates of the group search, see `search_scale`.
        limits: smallest and largest sub.

    Returns:
        float32 [R], integers.
    """
    scale, _ = search_scale(tile, places)
    current = SuperScales(d, sub[None])
    error = tile.error(d * current.sub)
    found = _nearest(scale, d, *limits)
    better = tile.error(d * found) < error
    current = SuperScales(d, np.where(better, found, current.sub))
    current, _ = _move_subs(tile, current, GROUP_WINDOW, limits)
    best: Floats = current.sub[0]
    return best


def search_group_pair(
    tile: Tile,
    steps: tuple[Floats, Floats],
    pair: tuple[Floats, Floats],
    cuts: tuple[tuple[float, float], ...],
    highest: int,
) -> tuple[Floats, Floats]:
    """The best sub-scale and minimum of one group when d and dmin are given; as `search_group_scale`.

    Args:
        tile: the group's weights, [g, 1, R].
        steps: d and dmin, float32 [R] each, d not negative.
        pair: the current sub and low, float32 [R] each.
        cuts: candidates of the group search, see `search_affine`.
        highest: largest sub and low.

    Returns:
        sub and low, float32 [R] each, integers.
    """
    d, dmin = steps
    current = SuperAffine(d, dmin, pair[0][None], pair[1][None])
    error = tile.error(d * current.sub, -(dmin * current.low))
    scale, bias, ones, _ = search_affine(tile, cuts, zero_in_range=True)
    sub = _nearest(scale, d, 0, highest)
    target = ones / tile.importance_sum() * (d * sub - scale) - bias
    low = _nearest(target, dmin, 0, highest)
    better = tile.error(d * sub, -(dmin * low)) < error
    current = SuperAffine(d, dmin, np.where(better, sub, current.sub), np.where(better, low, current.low))
    current, _ = _move_pairs(tile, current, highest)
    return current.sub[0], current.low[0]
