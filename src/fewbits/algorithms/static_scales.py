"""Scales of activations that are chosen once, from what calibration saw of a map's inputs.

The scale of all tokens is the one with the least mean square error of rounding the inputs, weighted by how much each
token's errors matter: a smaller one clips more, a larger one rounds everything else more coarsely. Beside the sampled
tokens stands one that has every input at its largest, so that an outlier the samples missed isn't free to clip.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fewbits.calibration.statistics import Floats, Statistics
from fewbits.errors import CalibrationError
from fewbits.formats.minifloat import E2M1, E4M3, round_bfloat16

# Scales are tried on a grid that is the same for all maps, so that maps with the same inputs get the same.
_STEPS_PER_OCTAVE, _OCTAVES = 6, 6
_INT8_RANGE = (-128, 127)


def static_scale(statistics: Statistics, nearest: Callable[[Floats], Floats], maximum: float) -> float:
    """What all inputs of a map are divided by, a positive bfloat16 number.

    Args:
        statistics: of the map, with samples.
        nearest: rounds float32 numbers to the grid, saturating.
        maximum: the grid's largest number.

    Raises:
        CalibrationError: nothing is known of the inputs.
    """
    x, largest = _inputs(statistics)
    peak = float(largest.max())
    if not peak > 0:
        return 1.0
    weights = _token_weights(statistics)
    rows = np.concatenate([x, largest[None]])
    weights = np.append(weights, weights.mean() * len(x) / max(statistics.tokens, len(x)))
    first = int(np.ceil(_STEPS_PER_OCTAVE * np.log2(peak / maximum)))
    best, least = 1.0, np.inf
    for step in range(first, first - _STEPS_PER_OCTAVE * _OCTAVES, -1):
        scale = round_bfloat16(np.array([2.0 ** (step / _STEPS_PER_OCTAVE)], np.float32))[0]
        error = nearest(rows / scale) * scale - rows
        loss = float(weights @ np.einsum("tk,tk->t", error, error, dtype=np.float64))
        if loss < least:
            best, least = float(scale), loss
        elif loss > 4 * least:
            break
    return best


def global_scale(statistics: Statistics) -> float:
    """NVFP4's for activations: what gives the largest input the largest E4M3 scale, 448 * 6 / largest magnitude.

    Raises:
        CalibrationError: nothing is known of the inputs.
    """
    peak = float(_inputs(statistics)[1].max())
    return float(np.float32(E4M3.maximum * E2M1.maximum / peak)) if peak > 0 else 1.0


def nearest_int8(x: Floats) -> Floats:
    """Integers of 8 bits, ties to even, saturating."""
    rounded: Floats = np.clip(np.rint(x), *_INT8_RANGE)
    return rounded


def _inputs(statistics: Statistics) -> tuple[Floats, Floats]:
    """Sampled inputs float32 [T, K], and the largest magnitude of each over all tokens, float32 [K]."""
    sample, restore, largest = statistics.sample, statistics.restore, statistics.largest
    if sample is None or restore is None or largest is None or not len(sample):
        raise CalibrationError(
            "a scale for activations needs to see some", found="a map that no calibration token reached",
            action="Calibrate on more text, or choose a format that rounds activations token by token",
        )  # fmt: skip
    return sample.astype(np.float32) * restore[:, None], largest


def _token_weights(statistics: Statistics) -> Floats:
    """w_t of the samples up to a factor, float32 [T]; all alike if none counts."""
    restore = statistics.restore
    assert restore is not None
    weights = np.divide(1, np.square(restore), out=np.zeros_like(restore), where=restore > 0)
    mean = weights.mean(dtype=np.float32)
    normal: Floats = weights / mean if mean > 0 else np.ones_like(weights)
    return normal
