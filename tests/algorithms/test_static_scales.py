"""Scales of activations that are chosen once: what clipping is worth, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from fewbits.algorithms.static_scales import E4M3_GRID, INT8_GRID, check_rule, global_scale, static_scale
from fewbits.calibration.statistics import Statistics
from fewbits.errors import CalibrationError, PlanError
from fewbits.formats.minifloat import round_bfloat16


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


@pytest.mark.parametrize("grid", [INT8_GRID, E4M3_GRID])
def test_the_scale_has_about_the_least_error_and_is_a_bfloat16_number(grid):
    x, weights = heavy_tailed()
    scale = static_scale(observed(x, weights), grid, "mse")

    def error(scale):
        return float(weights @ np.square(grid.nearest(x / np.float32(scale)) * scale - x).sum(axis=1))

    tried = np.abs(x).max() / grid.maximum * np.exp2(-np.linspace(0, 5, 200))
    assert error(scale) < 1.05 * min(map(error, tried))
    assert scale == round_bfloat16(np.array([scale], np.float32))[0]


def test_large_inputs_of_tokens_that_do_not_matter_are_clipped():
    x, weights = heavy_tailed(1)
    loud = x.copy()
    loud[:10] *= 30
    light = weights.copy()
    light[:10] *= 1e-6
    quiet = replace(observed(loud, light), largest=np.abs(x).max(axis=0))

    assert static_scale(quiet, INT8_GRID, "mse") < 0.2 * static_scale(
        observed(loud, weights), INT8_GRID, "mse"
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
    assert static_scale(moved, INT8_GRID, "mse") == static_scale(seen, INT8_GRID, "mse")


def test_maps_that_nothing_is_known_of_are_refused():
    x, weights = heavy_tailed()
    with pytest.raises(CalibrationError, match="no calibration token reached"):
        static_scale(replace(observed(x, weights), sample=None), INT8_GRID)


def test_the_largest_input_and_percentiles_decide_where_that_is_asked_for():
    x, weights = heavy_tailed(5)
    seen = replace(observed(x, weights), largest=2 * np.abs(x).max(axis=0))  # by tokens that weren't sampled

    assert static_scale(seen, INT8_GRID, "absmax") == pytest.approx(2 * np.abs(x).max() / 127, rel=0.005)
    for share in (50.0, 99.0, 99.9):
        scale = static_scale(seen, INT8_GRID, f"percentile:{share}")
        assert np.mean(np.abs(x) <= 127 * scale) == pytest.approx(share / 100, abs=0.01)


def test_what_is_best_on_tokens_that_it_was_not_chosen_by_is_taken():
    x, weights = heavy_tailed(6)
    rules = ("mse", "absmax", "percentile:99.9", "percentile:99.99")
    found = {rule: static_scale(observed(x, weights), INT8_GRID, rule) for rule in rules}
    assert len(set(found.values())) > 2
    assert static_scale(observed(x, weights), INT8_GRID, "held-out") in found.values()
    # Every second token has an outlier, which those that the scales are chosen by don't have.
    x[1::2, 0] = 300.0
    seen = observed(x, np.ones_like(weights))
    assert (
        static_scale(
            replace(seen, sample=seen.sample[::2], restore=seen.restore[::2]), INT8_GRID, "percentile:99.9"
        )
        < 0.5
    )
    assert static_scale(seen, INT8_GRID, "held-out") > 0.99 * 300 / 127


@pytest.mark.parametrize(
    "rule", ["", "best", "percentile", "percentile:", "percentile:0", "percentile:101", "percentile:x"]
)
def test_other_rules_are_refused(rule):
    with pytest.raises(PlanError, match=r"percentile:P.*held-out"):
        check_rule(rule)
