"""Scales and zero points of integer grids: a grid of shrunken ranges, then least squares and re-rounding.

What each candidate costs is measured after rounding the codes and the scale; the rounding of the
product, where there is one, which no scale avoids, is left to the last comparison with plain min-max rounding.
`fit_symmetric` and `fit_asymmetric` are the specification of native/kernels/integers.inc, which `fit` calls.
"""

from __future__ import annotations

from math import log2

import numpy as np
import numpy.typing as npt

from fewbits import _native
from fewbits.formats.format import Codes, Floats
from fewbits.formats.scale_search import (
    ScaleSearch,
    denormalise,
    dot,
    normalise,
    relative_importance,
    tiles,
)
from fewbits.formats.scale_type import ScaleType

# Narrowest range that is tried in short blocks, relative to the whole one, by width of the code, and how many
# are tried. Fewer bits gain more from clipping outliers; with 8 bits there is nothing to win below 0.9.
_NARROWEST = {2: 0.4, 3: 0.5, 4: 0.6, 5: 0.7, 6: 0.8, 7: 0.85, 8: 0.9}
_CANDIDATES = 12
# Longer blocks have outliers that lie farther out: for every 5 doublings beyond this length, half the range.
_SHORT = 128


def fit(
    weight: Floats, importance: Floats | None, width: int, scales: ScaleType, *, symmetric: bool
) -> tuple[Floats, Codes]:
    """What `fit_symmetric` (with the middle code as zero point) or `fit_asymmetric` finds, in native code."""
    scale = np.empty(len(weight), np.float32)
    zero = np.full(len(weight), 2 ** (width - 1), np.uint8)
    steps = 2 ** (width - 1) if symmetric else 2**width
    if importance is not None:
        importance = np.ascontiguousarray(importance, np.float32)
    _native.fit_integers(
        np.ascontiguousarray(weight, np.float32), importance,
        width=width, symmetric=symmetric, significant=scales.significant, smallest=scales.smallest,
        largest=scales.largest / steps, signed_scales=scales.signed, rounds_products=scales.rounds_products,
        shares=_shares(width, weight.shape[1], steps / (steps - 1) if symmetric else 1.0),
        cuts_ends=weight.shape[1] > _SHORT, scale=scale, zero=zero,
    )  # fmt: skip
    return scale, zero


def fit_symmetric(weight: Floats, importance: Floats | None, width: int, scales: ScaleType) -> Floats:
    """The scale of each block for codes -2**(b-1) … 2**(b-1) - 1 times the scale.

    Args:
        weight: float32 [R, B], finite.
        importance: float32 [R, B] or [B], or None.
        width: b.
        scales: their dtype. Where they may be negative, the range's one step more on its negative side goes to
            the side with the largest weight.

    Returns:
        float32 [R], never 0.
    """
    half = 2 ** (width - 1)

    def nearest(x: Floats, zero: Floats) -> Floats:
        del zero
        np.maximum(x, np.float32(-half), out=x)
        np.minimum(x, np.float32(half - 1), out=x)
        return np.rint(x, out=x)

    out = np.empty(weight.shape[0], np.float32)
    for part in tiles(weight.shape):
        x, exponent = normalise(weight[part])
        peak = np.abs(x).max(axis=1)
        search = ScaleSearch(x, relative_importance(importance, part, weight.shape), nearest, scales.store)
        plain = np.where(peak > 0, peak / np.float32(half - 0.5), 1).astype(np.float32)
        search.consider(plain)
        plain = search.scale
        sign = np.where((x.max(axis=1) >= peak) & (peak > 0) & scales.signed, np.float32(-1), np.float32(1))
        full = plain * sign * np.float32((half - 0.5) / half)
        # One step above 1: the largest weight gets the code next to the last.
        for factor in _shares(width, x.shape[1], half / (half - 1)):
            search.consider(full * factor)
            if width <= 3 and scales.signed:
                search.consider(-full * factor)
        search.refine()
        chosen = search.scale
        if scales.rounds_products:
            chosen = np.where(_beaten(search, plain, search.zero, scales), plain, chosen)
        chosen = scales.store(denormalise(chosen, exponent, scales.largest / half))
        out[part] = np.where(peak > 0, chosen, 1)
    return out


def fit_asymmetric(
    weight: Floats, importance: Floats | None, width: int, scales: ScaleType
) -> tuple[Floats, Codes]:
    """The scale and zero point of each block for codes 0 … 2**b - 1; 0 is always representable.

    Args:
        weight: float32 [R, B], finite.
        importance: float32 [R, B] or [B], or None.
        width: b.
        scales: their dtype.

    Returns:
        float32 [R], positive; uint8 [R].
    """
    top = 2**width - 1

    def nearest(x: Floats, zero: Floats) -> Floats:
        x += zero
        np.maximum(x, np.float32(0), out=x)
        np.minimum(x, np.float32(top), out=x)
        np.rint(x, out=x)
        return np.subtract(x, zero, out=x)

    scale, zero = np.empty(weight.shape[0], np.float32), np.empty(weight.shape[0], np.uint8)
    for part in tiles(weight.shape):
        x, exponent = normalise(weight[part])
        low, high = np.minimum(x.min(axis=1), 0), np.maximum(x.max(axis=1), 0)
        empty = low == high
        search = ScaleSearch(x, relative_importance(importance, part, weight.shape), nearest, scales.store)
        plain = scales.store(np.where(empty, 1, (high - low) / np.float32(top)).astype(np.float32))
        plain_zero = _zero_point(low, plain, top)
        search.consider(plain, plain_zero)
        _try_ranges(search, low, high, plain_zero, width, x.shape[1])
        search.refine(1)
        for _ in range(2):
            search.consider(*_regress(search, x, top))
        search.refine(1)
        chosen, chosen_zero = search.scale, search.zero
        if scales.rounds_products:
            beaten = _beaten(search, plain, plain_zero, scales)
            chosen = np.where(beaten, plain, chosen)
            chosen_zero = np.where(beaten, plain_zero, chosen_zero)
        chosen = scales.store(denormalise(chosen, exponent, scales.largest / (top + 1)))
        scale[part] = np.where(empty, 1, chosen)
        zero[part] = chosen_zero
    return scale, zero


def _try_ranges(
    search: ScaleSearch, low: Floats, high: Floats, zero: Floats, width: int, columns: int
) -> None:
    """Narrower ranges than low [R] … high [R]: around 0 with the zero point [R] and its neighbours."""
    top = 2**width - 1
    empty = low == high
    whole = np.where(empty, 1, (high - low) / np.float32(top)).astype(np.float32)
    for share in _shares(width, columns, 1.0):
        for shift in (-1, 0, 1):
            search.consider(whole * share, np.clip(zero + np.float32(shift), 0, top))
        if columns > _SHORT:
            # Outliers on one side: cut both ends at the same magnitude.
            end = np.maximum(high, -low) * share
            cut = np.maximum(low, -end)
            scale = np.where(empty, 1, (np.minimum(high, end) - cut) / np.float32(top)).astype(np.float32)
            search.consider(scale, _zero_point(cut, scale, top))


def _shares(width: int, columns: int, widest: float) -> Floats:
    """Ranges to try in blocks of this length, as shares of the whole range."""
    extra = int(4 * max(0.0, log2(columns / _SHORT)) / 5)
    narrower = _NARROWEST[width] * np.exp2(np.arange(-extra, 0) / 4)
    usual = np.linspace(_NARROWEST[width], widest, _CANDIDATES)
    return np.concatenate([narrower, usual]).astype(np.float32)


def _zero_point(low: Floats, scale: Floats, top: int) -> Floats:
    zero: Floats = np.clip(np.rint(-low / scale), 0, top)
    return zero


def _regress(search: ScaleSearch, x: Floats, top: int) -> tuple[Floats, Floats]:
    """Scale and zero point of the weighted least-squares line through the best codes so far.

    With points v = code - zero the line is x ~ scale * v + offset, and offset = scale * (zero - new zero).
    """
    points = search.points(search.scale, search.zero)
    one = np.ones_like(points)
    n, v = dot(search.weighted(one), one), dot(search.weighted(points), one)
    vv, xv = dot(search.weighted(points), points), dot(search.weighted(x), points)
    total = dot(search.weighted(x), one)
    spread = n * vv - v * v
    usable = spread > 1e-6 * n * vv
    scale = np.where(usable, (n * xv - v * total) / np.where(usable, spread, 1), search.scale)
    scale = np.where(scale > 0, scale, search.scale).astype(np.float32)
    offset = (total - scale * v) / n
    zero = np.clip(np.rint(search.zero - offset / scale), 0, top).astype(np.float32)
    return scale, zero


def _beaten(
    search: ScaleSearch, plain: Floats, plain_zero: Floats, scales: ScaleType
) -> npt.NDArray[np.bool_]:
    """Where plain min-max rounding is better than the search's best once products are rounded; bool [R]."""
    best = search.product_error(search.scale, search.zero, scales.round)
    beaten: npt.NDArray[np.bool_] = search.product_error(plain, plain_zero, scales.round) < best
    return beaten
