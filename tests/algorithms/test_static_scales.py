"""Scales of activations that are chosen once: what clipping is worth, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from fewbits.algorithms.static_scales import global_scale, nearest_int8, static_scale
from fewbits.calibration.statistics import Statistics
from fewbits.errors import CalibrationError
from fewbits.formats.minifloat import E4M3, round_bfloat16


def observed(x, token_weights):
    """Statistics that saw these inputs float32 [T, K], with these weights [T]."""
    rooted = x * np.sqrt(token_weights)[:, None]
    norm = np.abs(rooted).max()
    moment = (rooted.T @ rooted / len(x)).astype(np.float32)
    return Statistics(
        moment, np.ones(4, np.float32), moment, len(x),
        sample=(rooted / norm).astype(np.float16),
        restore=(norm / np.sqrt(token_weights)).astype(np.float32),
        largest=np.abs(x).max(axis=0),
    )  # fmt: skip


def heavy_tailed(seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_t(4, size=(200, 96)).astype(np.float32), rng.uniform(0.5, 2, 200).astype(np.float32)


@pytest.mark.parametrize(("nearest", "maximum"), [(nearest_int8, 127), (E4M3.nearest, 448)])
def test_the_scale_has_about_the_least_error_and_is_a_bfloat16_number(nearest, maximum):
    x, weights = heavy_tailed()
    scale = static_scale(observed(x, weights), nearest, maximum)

    def error(scale):
        return float(weights @ np.square(nearest(x / np.float32(scale)) * scale - x).sum(axis=1))

    tried = np.abs(x).max() / maximum * np.exp2(-np.linspace(0, 5, 200))
    assert error(scale) < 1.05 * min(map(error, tried))
    assert scale == round_bfloat16(np.array([scale], np.float32))[0]


def test_large_inputs_of_tokens_that_do_not_matter_are_clipped():
    x, weights = heavy_tailed(1)
    loud = x.copy()
    loud[:10] *= 30
    light = weights.copy()
    light[:10] *= 1e-6
    quiet = replace(observed(loud, light), largest=np.abs(x).max(axis=0))

    assert static_scale(quiet, nearest_int8, 127) < 0.2 * static_scale(
        observed(loud, weights), nearest_int8, 127
    )


def test_the_global_scale_gives_the_largest_input_the_largest_number():
    x, weights = heavy_tailed(2)

    assert global_scale(observed(x, weights)) == pytest.approx(2688 / np.abs(x).max(), rel=1e-6)


def test_inputs_that_follow_a_rescaling_have_the_scale_of_the_rescaled():
    x, weights = heavy_tailed(3)
    columns = np.exp(np.random.default_rng(4).normal(0, 1, 96)).astype(np.float32)
    moved = observed(x, weights).rescaled(columns)
    seen = observed(x / columns, weights)

    assert np.allclose(moved.largest, seen.largest, rtol=1e-5)
    assert static_scale(moved, nearest_int8, 127) == static_scale(seen, nearest_int8, 127)


def test_maps_that_nothing_is_known_of_are_refused():
    x, weights = heavy_tailed()
    with pytest.raises(CalibrationError, match="no calibration token reached"):
        static_scale(replace(observed(x, weights), sample=None), nearest_int8, 127)
