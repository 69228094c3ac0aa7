"""The search for scales, shared by the formats whose values are ``scale * grid point``.

Each candidate scale rounds the block, then gets the closed-form weighted least-squares scale of those
codes; the best one is rounded to what the container can store and rounds the block again. The first
candidate is plain min-max rounding, and it stays unless another has a smaller error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt

from fewbits import _native
from fewbits.formats.format import Floats
from fewbits.formats.minifloat import SMALLEST_SCALE

# Elements worked on together: three or four such float32 arrays fit in a core's level 2 cache.
TILE = 1 << 15

# Columns that are summed first, see `specified_dot`.
_RUN = 32

# Sign, exponent and 10 bits of mantissa: exact for bfloat16 and float16 weights, finer than any 8-bit grid.
_HISTOGRAM_SHIFT = np.uint32(13)
_HISTOGRAM_BINS = 1 << 19


def tiles(shape: tuple[int, ...]) -> Iterator[slice]:
    """Runs of blocks of an array [R, B] that are small enough for the cache."""
    step = max(1, TILE // max(shape[1], 1))
    for start in range(0, shape[0], step):
        yield slice(start, start + step)


def relative_importance(importance: Floats | None, blocks: slice, shape: tuple[int, ...]) -> Floats | None:
    """Importance of some blocks of an array [R, B], divided by its largest value in each block.

    Args:
        importance: float32 [R, B] or [B], or None.
        blocks: which of the R.
        shape: R, B.

    Returns:
        float32 [blocks, B], 1 everywhere in blocks whose importance is all zero; None for None.
    """
    if importance is None:
        return None
    part = np.broadcast_to(importance, shape)[blocks]
    largest = part.max(axis=1, keepdims=True)
    return np.where(largest > 0, part / np.where(largest > 0, largest, 1), 1).astype(np.float32)


def normalise(weight: Floats) -> tuple[Floats, npt.NDArray[np.int32]]:
    """Blocks times powers of two so that squares neither overflow nor vanish.

    Returns:
        ``weight * 2**-exponent``, float32 [R, B], its largest magnitude in [0.5, 1) unless it is zero or
        subnormal; and the exponents, int32 [R].
    """
    exponent = np.maximum(np.frexp(np.abs(weight).max(axis=1))[1], -125)
    factor: Floats = np.ldexp(np.float32(1), -exponent)
    return weight * factor[:, None], exponent


def denormalise(scale: Floats, exponent: npt.NDArray[np.int32], largest: float) -> Floats:
    """Scales of normalised blocks as scales of the blocks, magnitude within `SMALLEST_SCALE` … `largest`."""
    with np.errstate(over="ignore"):
        magnitude = np.ldexp(np.abs(scale), exponent)
    clipped = np.clip(magnitude, np.float32(SMALLEST_SCALE), np.float32(largest))
    signed: Floats = np.copysign(clipped, scale)
    return signed


def storable(scale: Floats, largest: float) -> Floats:
    """Positive scales within `SMALLEST_SCALE` … `largest`."""
    return np.clip(scale, np.float32(SMALLEST_SCALE), np.float32(largest))


def dot(left: Floats, right: Floats) -> Floats:
    """Inner products of the rows of two float32 arrays [R, B]: float32 [R], the same on every machine."""
    products = np.empty(len(left), np.float32)
    _native.row_dots(np.ascontiguousarray(left), np.ascontiguousarray(right), products)
    return products


def specified_dot(left: Floats, right: Floats) -> Floats:
    """What `dot` gives: sums of runs of 32 columns by halves, filled up with zeros, then of the runs likewise."""
    rows, columns = left.shape
    runs = -(-columns // _RUN)
    products = np.zeros((rows, runs * _RUN), np.float32)
    np.multiply(left, right, out=products[:, :columns])
    sums = np.zeros((rows, 1 << (runs - 1).bit_length()), np.float32)
    sums[:, :runs] = _halved(products.reshape(rows, runs, _RUN))
    return _halved(sums)


def _halved(numbers: Floats) -> Floats:
    """Sums over the last axis by halves; its length is a power of two."""
    while (half := numbers.shape[-1] // 2) > 0:
        numbers = numbers[..., :half] + numbers[..., half:]
    summed: Floats = numbers[..., 0]
    return summed


class ScaleSearch:
    """The best scale so far of each of R blocks.

    Attributes:
        scale: float32 [R], storable.
        zero: float32 [R], the zero point it goes with.
        error: float32 [R], its weighted squared error.
    """

    def __init__(
        self,
        weight: Floats,
        importance: Floats | None,
        nearest: Callable[[Floats, Floats], Floats],
        store: Callable[[Floats], Floats],
    ) -> None:
        """Start a search.

        Args:
            weight: float32 [R, B], small enough that squares don't overflow.
            importance: float32 [R, B] or None.
            nearest: maps ``weight / scale`` [R, B], which it may overwrite, and zero points [R, 1] to the
                nearest grid points minus the zero point, float32 [R, B].
            store: rounds scales [R] to what the container can hold; never to zero.
        """
        blocks = weight.shape[0]
        self._weight = weight
        self._importance = importance
        self._nearest = nearest
        self._store = store
        self.scale: Floats = np.ones(blocks, np.float32)
        self.zero: Floats = np.zeros(blocks, np.float32)
        self.error: Floats = np.full(blocks, np.inf, np.float32)
        self._refit = self.scale
        self._refit_zero = self.zero
        self._refit_error = self.error

    def weighted(self, x: Floats) -> Floats:
        """Importance times x, float32 [R, B]."""
        return x if self._importance is None else x * self._importance

    def points(self, scale: Floats, zero: Floats) -> Floats:
        """Nearest grid points minus the zero point under these parameters, float32 [R, B]."""
        return self._nearest(self._weight / scale[:, None], zero[:, None])

    def consider(self, scale: Floats, zero: Floats | None = None) -> None:
        """Try one scale, float32 [R], and zero point for every block and keep it where it is better."""
        scale = self._store(scale)
        zero = self.zero if zero is None else zero
        points = self.points(scale, zero)
        residual = points * scale[:, None]
        np.subtract(self._weight, residual, out=residual)
        weighted = self.weighted(residual)
        error = dot(weighted, residual)
        energy = dot(self.weighted(points), points)
        shift = dot(weighted, points) / np.where(energy > 0, energy, 1)
        refit_error = error - shift * shift * energy

        better = error < self.error
        self.scale = np.where(better, scale, self.scale)
        self.zero = np.where(better, zero, self.zero)
        self.error = np.where(better, error, self.error)
        better = refit_error < self._refit_error
        self._refit = np.where(better, scale + shift, self._refit)
        self._refit_zero = np.where(better, zero, self._refit_zero)
        self._refit_error = np.where(better, refit_error, self._refit_error)

    def product_error(self, scale: Floats, zero: Floats, rounding: Callable[[Floats], Floats]) -> Floats:
        """Weighted squared error of each block, float32 [R], when products are rounded too."""
        residual = self._weight - rounding(self.points(scale, zero) * scale[:, None])
        return dot(self.weighted(residual), residual)

    def refine(self, rounds: int = 2) -> None:
        """Alternate between the least-squares scale of the best codes and the codes of that scale."""
        for _ in range(rounds):
            self.consider(self._refit, self._refit_zero)


def histogram(chunks: Iterable[Floats]) -> tuple[Floats, Floats]:
    """What a tensor's numbers are and how many of each, in one pass and whatever the chunks.

    Args:
        chunks: float32 arrays, finite.

    Returns:
        values, float32 [1, M], and their counts, float32 [1, M]: one block and its importance for a fit of
        parameters of the whole tensor. Values are rounded to 11 significant bits, but the smallest and the
        largest are exact.
    """
    counts = np.zeros(_HISTOGRAM_BINS, np.int64)
    low, high = np.float32(0), np.float32(0)
    for chunk in chunks:
        if not chunk.size:
            continue
        low, high = min(low, chunk.min()), max(high, chunk.max())
        bits = np.ascontiguousarray(chunk, np.float32).reshape(-1).view(np.uint32)
        # Magnitudes of at most float32's largest stay below the sign bit after this rounding.
        bins = (bits + np.uint32(0xFFF) + ((bits >> _HISTOGRAM_SHIFT) & np.uint32(1))) >> _HISTOGRAM_SHIFT
        counts += np.bincount(bins, minlength=_HISTOGRAM_BINS)
    found = np.flatnonzero(counts)
    values = (found.astype(np.uint32) << _HISTOGRAM_SHIFT).view(np.float32)
    if not found.size:
        return np.zeros((1, 1), np.float32), np.ones((1, 1), np.float32)
    values = np.clip(values, low, high)
    if high > 0:
        values[values.argmax()] = high
    if low < 0:
        values[values.argmin()] = low
    return values[None], counts[found].astype(np.float32)[None]
