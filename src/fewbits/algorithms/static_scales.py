"""Scales of activations that are chosen once, from what calibration saw of a map's inputs.

    absmax          the largest magnitude of any input becomes the grid's largest number
    percentile:P    that of which P per cent of the sampled inputs are no larger; what is beyond is clipped
    mse             the least mean square error of rounding, weighted by how much each token's errors matter
    held-out        of these, with P 99.9 and 99.99, what has the least such error on tokens that it wasn't chosen by

A smaller scale clips more, a larger one rounds everything else more coarsely. Beside the sampled tokens stands one that
has every input at its largest, so that for ``mse`` an outlier that the samples missed isn't free to clip.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from fewbits.calibration.statistics import Floats, Statistics
from fewbits.errors import CalibrationError, PlanError
from fewbits.formats.minifloat import E2M1, E4M3, round_bfloat16

ABSMAX, PERCENTILE, MSE, HELD_OUT = "absmax", "percentile", "mse", "held-out"
DEFAULT_RULE = MSE
_TRIED = (MSE, ABSMAX, f"{PERCENTILE}:99.9", f"{PERCENTILE}:99.99")
# Scales are tried on a grid that is the same for all maps, so that maps with the same inputs get the same.
_STEPS_PER_OCTAVE, _OCTAVES = 6, 6
_INT8_RANGE = (-128, 127)


@dataclass(frozen=True)
class Grid:
    """Numbers that inputs are rounded to once they are divided by the scale.

    Attributes:
        nearest: rounds float32 numbers to them, saturating.
        maximum: the largest one.
    """

    nearest: Callable[[Floats], Floats]
    maximum: float


def _nearest_int8(x: Floats) -> Floats:
    """Integers of 8 bits, ties to even, saturating."""
    rounded: Floats = np.clip(np.rint(x), *_INT8_RANGE)
    return rounded


INT8_GRID = Grid(_nearest_int8, 127.0)
E4M3_GRID = Grid(E4M3.nearest, float(E4M3.maximum))


@dataclass(frozen=True)
class _Inputs:
    """What is known of a map's inputs.

    Attributes:
        sample: of some tokens, float32 [T, K].
        weights: how much each of these counts, float32 [T], mean 1.
        largest: magnitude of each input over all tokens, float32 [K].
        tokens: how many there were.
    """

    sample: Floats
    weights: Floats
    largest: Floats
    tokens: int

    def take(self, tokens: slice) -> _Inputs:
        """Some of the sampled tokens in place of all."""
        return replace(self, sample=self.sample[tokens], weights=self.weights[tokens])


def check_rule(rule: str) -> None:
    """Refuse what is no rule.

    Raises:
        PlanError: with those there are.
    """
    if rule in (ABSMAX, MSE, HELD_OUT):
        return
    name, _, share = rule.partition(":")
    try:
        if name == PERCENTILE and 0 < float(share) <= 100:
            return
    except ValueError:
        pass
    raise PlanError(
        "unknown rule for static scales", found=repr(rule),
        allowed=f"{ABSMAX}, {PERCENTILE}:P with P up to 100, {MSE}, {HELD_OUT}",
    )  # fmt: skip


def static_scale(statistics: Statistics, grid: Grid, rule: str = DEFAULT_RULE) -> float:
    """What all inputs of a map are divided by, a positive bfloat16 number.

    Args:
        statistics: of the map, with samples.
        grid: what inputs are rounded to.
        rule: one of the module's.

    Raises:
        CalibrationError: nothing is known of the inputs.
        PlanError: no such rule.
    """
    check_rule(rule)
    inputs = _inputs(statistics)
    if not inputs.largest.max() > 0:
        return 1.0
    return _by_rule(inputs, grid, rule)


def _by_rule(inputs: _Inputs, grid: Grid, rule: str) -> float:
    if rule == HELD_OUT:
        seen, unseen = inputs.take(slice(0, None, 2)), inputs.take(slice(1, None, 2))
        if len(unseen.sample):
            losses = {name: _error(unseen, grid, _by_rule(seen, grid, name)) for name in _TRIED}
            rule = min(losses, key=lambda name: losses[name])
        else:
            rule = MSE
    if rule == MSE:
        return _least_error(inputs, grid)
    peak = float(inputs.largest.max())
    if rule != ABSMAX:
        peak = float(np.percentile(np.abs(inputs.sample), float(rule.partition(":")[2]))) or peak
    return _stored(peak / grid.maximum)


def _least_error(inputs: _Inputs, grid: Grid) -> float:
    """The scale of least weighted square error, on the grid of scales."""
    rows = np.concatenate([inputs.sample, inputs.largest[None]])
    share = len(inputs.sample) / max(inputs.tokens, len(inputs.sample))
    whole = replace(inputs, sample=rows, weights=np.append(inputs.weights, inputs.weights.mean() * share))
    first = int(np.ceil(_STEPS_PER_OCTAVE * np.log2(float(inputs.largest.max()) / grid.maximum)))
    best, least = 1.0, np.inf
    for step in range(first, first - _STEPS_PER_OCTAVE * _OCTAVES, -1):
        scale = _stored(2.0 ** (step / _STEPS_PER_OCTAVE))
        loss = _error(whole, grid, scale)
        if loss < least:
            best, least = scale, loss
        elif loss > 4 * least:
            break
    return best


def _error(inputs: _Inputs, grid: Grid, scale: float) -> float:
    """Weighted square error of rounding the sampled inputs."""
    step = np.float32(scale)
    error = grid.nearest(inputs.sample / step) * step - inputs.sample
    return float(inputs.weights @ np.einsum("tk,tk->t", error, error, dtype=np.float64))


def _stored(scale: float) -> float:
    """The nearest bfloat16 number."""
    return float(round_bfloat16(np.array([scale], np.float32))[0])


def global_scale(statistics: Statistics) -> float:
    """NVFP4's for activations: what gives the largest input the largest E4M3 scale, 448 * 6 / largest magnitude.

    Raises:
        CalibrationError: nothing is known of the inputs.
    """
    peak = float(_inputs(statistics).largest.max())
    return float(np.float32(E4M3.maximum * E2M1.maximum / peak)) if peak > 0 else 1.0


def _inputs(statistics: Statistics) -> _Inputs:
    sample, restore, largest = statistics.sample, statistics.restore, statistics.largest
    if sample is None or restore is None or largest is None or not len(sample):
        raise CalibrationError(
            "a scale for activations needs to see some", found="a map that no calibration token reached",
            action="Calibrate on more text, or choose a format that rounds activations token by token",
        )  # fmt: skip
    weights = np.divide(1, np.square(restore), out=np.zeros_like(restore), where=restore > 0)
    mean = weights.mean(dtype=np.float32)
    weights = weights / mean if mean > 0 else np.ones_like(weights)
    return _Inputs(sample.astype(np.float32) * restore[:, None], weights, largest, statistics.tokens)
