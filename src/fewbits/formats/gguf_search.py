"""Searches for the scales of GGUF blocks under importance-weighted squared error.

All arrays are columns first, [g, G, R] (see `gguf_block.py`), so that one NumPy call works on thousands of
blocks and a sum inside a group has a fixed order, whatever R is: results don't depend on chunking.

The searches share one idea. For given codes q the best scale has a closed form (weighted least squares);
for a given scale the best codes are the nearest ones. The error as a function of the scale has many local
minima, so a search tries a fan of scales, takes the best by the closed form, and then alternates. What is
finally compared is always the error of the numbers the runtime decodes: stored scales, nearest codes.

This and `gguf_super_search` are the specification of native/kernels/search.inc, which finds the same numbers.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from fewbits.formats.format import Codes, Floats
from fewbits.formats.gguf_block import Grid, reciprocal
from fewbits.formats.minifloat import round_float16

# Below this a weight is zero in every format with a float16 scale (its smallest step is 2**-24).
SMALLEST = np.float32(2.0**-30)
TINY = np.float32(1e-37)


class UniformGrid:
    """The integers low … high; code = value + zero, where `zero` is -low unless given."""

    def __init__(self, low: int, high: int, zero: int | None = None) -> None:
        self.low, self.high = np.float32(low), np.float32(high)
        self.zero = np.float32(-low if zero is None else zero)
        self.codes = range(int(low + self.zero), int(high + self.zero) + 1)
        self.table, self.code_table = np.empty(0, np.float32), np.empty(0, np.uint8)

    def snap(self, numbers: Floats) -> None:
        """Round half to even, then clip."""
        np.rint(numbers, out=numbers)
        np.clip(numbers, self.low, self.high, out=numbers)

    def encode(self, numbers: Floats) -> Codes:
        """Codes of the nearest integers."""
        self.snap(numbers)
        np.add(numbers, self.zero, out=numbers)
        return numbers.astype(np.uint8)

    def decode(self, codes: Codes) -> Floats:
        """Code minus zero."""
        values = codes.astype(np.float32)
        return np.subtract(values, self.zero, out=values)


class LookupGrid:
    """Any integers within ±128; code = position in `values`, the first position for a value listed twice.

    Midpoints of integers are multiples of 1/2, so the nearest value of t depends on floor(2t) alone,
    and one table look-up replaces a search.
    """

    def __init__(self, values: tuple[int, ...]) -> None:
        self._values = np.array(values, dtype=np.float32)
        self.codes = range(len(values))
        self.low, self.high, self.zero = self._values.min(), self._values.max(), np.float32(0)
        centres = (np.arange(512, dtype=np.float32) - 256) / 2 + np.float32(0.25)
        self.code_table: Codes = np.abs(centres[:, None] - self._values).argmin(axis=1).astype(np.uint8)
        self.table: Floats = self._values[self.code_table]

    def _positions(self, numbers: Floats) -> npt.NDArray[np.intp]:
        np.clip(numbers, -127.75, 127.75, out=numbers)
        np.multiply(numbers, 2, out=numbers)
        np.add(numbers, 256, out=numbers)  # positive, so that truncation is floor
        return numbers.astype(np.intp)

    def snap(self, numbers: Floats) -> None:
        """Nearest values; a number half-way goes up."""
        np.take(self.table, self._positions(numbers), out=numbers, mode="clip")

    def encode(self, numbers: Floats) -> Codes:
        """Codes of the nearest values."""
        codes: Codes = self.code_table[self._positions(numbers)]
        return codes

    def decode(self, codes: Codes) -> Floats:
        """The value at each code's position."""
        return np.take(self._values, codes)


def fan(*stretches: tuple[float, float, int]) -> tuple[float, ...]:
    """Candidates: for each stretch (first, last, count), so many evenly spaced numbers."""
    return tuple(
        first + (last - first) * i / max(count - 1, 1)
        for first, last, count in stretches
        for i in range(count)
    )


def trims(first: float, last: float, count: int, steps: int) -> tuple[tuple[float, float], ...]:
    """Candidates for `search_affine`: all pairs of `count` cuts from `first` to `last`, in 1/`steps`."""
    cuts = fan((first / steps, last / steps, count))
    return ((0.0, 0.0), *((below, above) for below in cuts for above in cuts))


@lru_cache(maxsize=64)
def cut_ranges(cuts: tuple[tuple[float, float], ...], high: np.float32) -> tuple[Floats, Floats]:
    """Of candidates of `search_affine`: a step and what is cut off below, as shares of the range; float32 [n]."""
    below, above = np.array(cuts, np.float32).T.copy()
    return (1 - below - above) / high, below


def total(parts: Floats) -> Floats:
    """Sum over the first axis by halves, always in the same order; overwrites `parts`.

    numpy.sum would add in another order when the other axes have length 1.
    """
    count = len(parts)
    while count > 1:
        count //= 2
        np.add(parts[:count], parts[count : 2 * count], out=parts[:count])
    result: Floats = parts[0].copy()
    return result


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Numerator / denominator for a denominator that isn't negative; 0 for 0 / 0."""
    quotient: Floats = np.divide(numerator, np.maximum(denominator, TINY))
    return quotient


def signed_peak(columns: Floats) -> Floats:
    """The number of largest magnitude along the first axis, with its sign; 0 below what float16 can scale."""
    high, low = columns.max(axis=0), columns.min(axis=0)
    peak = np.where(high >= -low, high, low)
    return np.where(np.abs(peak) < SMALLEST, np.float32(0), peak)


class Tile:
    """Weights and importance of some blocks, with the scratch space that all candidates share.

    Args:
        weight: float32 [g, G, R].
        importance: the same shape, or None.
        grid: values of the codes.
    """

    def __init__(self, weight: Floats, importance: Floats | None, grid: Grid) -> None:
        self.weight, self.importance, self.grid = weight, importance, grid
        self.weighted = weight if importance is None else weight * importance
        self.codes = np.empty_like(weight)
        self.spare = np.empty_like(weight)

    def _sum_of(self, left: Floats, right: Floats) -> Floats:
        np.multiply(left, right, out=self.spare)
        return total(self.spare)

    def _weigh(self, values: Floats) -> Floats:
        """Importance times values, in the scratch array."""
        if self.importance is None:
            np.copyto(self.spare, values)
        else:
            np.multiply(values, self.importance, out=self.spare)
        return self.spare

    def importance_sum(self) -> Floats:
        """Σ w, [G, R]."""
        if self.importance is None:
            return np.full(self.weight.shape[1:], len(self.weight), np.float32)
        np.copyto(self.spare, self.importance)
        return total(self.spare)

    def weighted_sum(self) -> Floats:
        """Σ w x, [G, R]."""
        np.copyto(self.spare, self.weighted)
        return total(self.spare)

    def code_moments(self) -> tuple[Floats, Floats]:
        """Σ w x q and Σ w q² of the current codes, [G, R] each."""
        cross = self._sum_of(self.weighted, self.codes)
        if self.importance is None:
            return cross, self._sum_of(self.codes, self.codes)
        square = self._weigh(self.codes)
        np.multiply(square, self.codes, out=square)
        return cross, total(square)

    def code_sum(self) -> Floats:
        """Σ w q of the current codes, [G, R]."""
        return total(self._weigh(self.codes))

    def set_codes(self, inverse: Floats, bias: Floats | None = None) -> None:
        """Make the current codes the nearest ones to (x - bias) * inverse."""
        if bias is None:
            np.multiply(self.weight, inverse, out=self.codes)
        else:
            np.subtract(self.weight, bias, out=self.codes)
            np.multiply(self.codes, inverse, out=self.codes)
        self.grid.snap(self.codes)

    def residual(self, scale: Floats, bias: Floats | None = None) -> Floats:
        """What the current codes miss, x - scale * q - bias, in the scratch array."""
        np.multiply(self.codes, scale, out=self.spare)
        if bias is not None:
            np.add(self.spare, bias, out=self.spare)
        return np.subtract(self.weight, self.spare, out=self.spare)

    def error(self, scale: Floats, bias: Floats | None = None) -> Floats:
        """Σ w (x - decoded)², [G, R], with the nearest codes, which become the current ones."""
        self.set_codes(reciprocal(scale), bias)
        residual = self.residual(scale, bias)
        np.multiply(residual, residual, out=residual)
        if self.importance is not None:
            np.multiply(residual, self.importance, out=residual)
        return total(residual)

    def residual_moments(self, scale: Floats, bias: Floats | None = None) -> tuple[Floats, Floats]:
        """Σ w r q and Σ w r of the current codes, where r is the residual; [G, R] each."""
        residual = self.residual(scale, bias)
        if self.importance is not None:
            np.multiply(residual, self.importance, out=residual)
        cross = total(residual * self.codes)
        return cross, total(residual)


def search_scale(tile: Tile, places: tuple[float, ...]) -> tuple[Floats, Floats]:
    """The best real-valued scale of each group by the closed form, and Σ w q² at its codes; [G, R] each.

    Args:
        tile: the weights.
        places: candidates, each the place in the grid that the largest weight is scaled to, with a sign.
    """
    per_peak = reciprocal(signed_peak(tile.weight))
    gains = np.empty((len(places), *per_peak.shape), np.float32)
    for place, gain in zip(places, gains, strict=True):
        tile.set_codes(per_peak * np.float32(place))
        cross, square = tile.code_moments()
        np.divide(cross * cross, np.maximum(square, TINY), out=gain)
    tile.set_codes(per_peak * np.array(places, np.float32)[gains.argmax(axis=0)])
    cross, square = tile.code_moments()
    return ratio(cross, square), square


def settle_scale(tile: Tile, start: Floats, scale: Floats, refits: int) -> Floats:
    """The best float16 scale among `start` and `scale`, alternating nearest codes and closed form.

    Args:
        tile: the weights.
        start: float16-exact scales [G, R], what the result may not be worse than.
        scale: scales to improve [G, R].
        refits: how often.
    """
    best_scale, best = start, tile.error(start)
    for _ in range(refits):
        scale = round_float16(scale)
        error = tile.error(scale)
        better = error < best
        best_scale, best = np.where(better, scale, best_scale), np.where(better, error, best)
        cross, square = tile.code_moments()
        scale = ratio(cross, square)
    return best_scale


def search_affine(
    tile: Tile, cuts: tuple[tuple[float, float], ...], zero_in_range: bool
) -> tuple[Floats, Floats, Floats, Floats]:
    """The best real-valued scale and bias of each group for x ≈ scale * q + bias, codes q = 0 … high.

    Explained energy of a candidate, Σwx² minus its error: (Σwx)²/Σw + cov²/var if the bias is free,
    (Σwxq)²/Σwq² if it is held at 0.

    Args:
        tile: the weights, with a grid that starts at 0.
        cuts: candidates: how much of the range of the weights is cut off below and above.
        zero_in_range: the bias must not be positive, as in the k-quants, whose minimum is unsigned.

    Returns:
        scale, bias, and at their codes Σ w q and Σ w q²; [G, R] each.
    """
    low, high = tile.weight.min(axis=0), tile.weight.max(axis=0)
    if zero_in_range:
        np.minimum(low, 0, out=low)
    span = np.maximum(high - low, 0)
    weights, mean_sum = tile.importance_sum(), tile.weighted_sum()
    steps, below = cut_ranges(cuts, tile.grid.high)
    gains = np.empty((len(cuts), *low.shape), np.float32)
    for trial, gain in enumerate(gains):
        scale, bias = span * steps[trial], low + span * below[trial]
        tile.set_codes(_safe_reciprocal(scale), bias)
        gain[...] = _affine_fit(tile, weights, mean_sum, zero_in_range)[4]
    chosen = gains.argmax(axis=0)
    scale, bias = span * steps[chosen], low + span * below[chosen]
    tile.set_codes(_safe_reciprocal(scale), bias)
    return _affine_fit(tile, weights, mean_sum, zero_in_range)[:4]


def _safe_reciprocal(scale: Floats) -> Floats:
    return reciprocal(np.where(np.abs(scale) < SMALLEST, np.float32(0), scale))


def _affine_fit(
    tile: Tile, weights: Floats, mean_sum: Floats, zero_in_range: bool
) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Closed form for the current codes: scale, bias, Σ w q, Σ w q², explained energy."""
    cross, square = tile.code_moments()
    ones = tile.code_sum()
    share = ones / weights
    variance = square - share * ones
    covariance = cross - mean_sum * share
    # When all codes are alike the bias alone explains them.
    scale = np.maximum(covariance, 0) / np.maximum(variance, square * np.float32(1e-6) + TINY)
    bias = (mean_sum - scale * ones) / weights
    gain = mean_sum * mean_sum / weights + scale * covariance
    if zero_in_range:
        held = bias > 0
        at_zero = ratio(np.maximum(cross, 0), square)
        scale = np.where(held, at_zero, scale)
        gain = np.where(held, at_zero * cross, gain)
        np.minimum(bias, 0, out=bias)
    return scale, bias, ones, square, gain


def settle_affine(
    tile: Tile, start: tuple[Floats, Floats], found: tuple[Floats, Floats], refits: int
) -> tuple[Floats, Floats]:
    """The best float16 scale and bias among `start` and `found`, alternating as `settle_scale` does."""
    weights, mean_sum = tile.importance_sum(), tile.weighted_sum()
    best_scale, best_bias = start
    best = tile.error(*start)
    scale, bias = found
    for _ in range(refits):
        scale, bias = round_float16(scale), round_float16(bias)
        error = tile.error(scale, bias)
        better = error < best
        best = np.where(better, error, best)
        best_scale, best_bias = np.where(better, scale, best_scale), np.where(better, bias, best_bias)
        scale, bias, *_ = _affine_fit(tile, weights, mean_sum, zero_in_range=False)
    return best_scale, best_bias
