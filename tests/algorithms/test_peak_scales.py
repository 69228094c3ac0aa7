"""Scales of channels where a scale is for a whole row or token: what they are worth, measured by rounding."""

from dataclasses import replace

import numpy as np
import pytest
from test_channel_scales import made_statistics

from fewbits.algorithms.channel_scales import own_costs
from fewbits.algorithms.peak_scales import Blocks, PeakReader, peak_scales, share_of_peak
from fewbits.calibration.statistics import output_product, scaled_inputs

ROWS, COLUMNS = 48, 128
INT8 = 1 / (12 * 127**2)


def made(seed, loud=(), factor=40):
    """Weight, statistics and what errors of inputs cost; some input channels are much larger than the others."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(ROWS, COLUMNS)).astype(np.float32)
    sizes = np.ones(COLUMNS, np.float32)
    sizes[list(loud)] = factor
    statistics = made_statistics(rng, ROWS, COLUMNS, spread=0.3).rescaled(1 / sizes)
    cost = np.einsum("nk,nk->k", output_product(statistics, weight), weight, dtype=np.float64)
    return weight, statistics, cost


def activation_loss(weight, statistics, scales):
    """Of 8-bit integers per token, by rounding the sampled inputs."""
    x = scaled_inputs(statistics) / scales
    step = np.abs(x).max(axis=1, keepdims=True) / 127
    error = ((np.rint(x / step) * step - x) * scales) @ weight.T
    return float(np.einsum("tn,tn->", output_product(statistics, error.T).T, error)) / len(x)


def weight_loss(weight, statistics, scales):
    """Of 8-bit integers per row: what is left once the other columns have made up for what they can."""
    grown = weight * scales
    step = np.abs(grown).max(axis=1, keepdims=True) / 127
    error = (np.rint(grown / step) * step - grown) / scales
    return float(statistics.row_importance @ np.square(error) @ own_costs(statistics.second_moment))


def test_loud_channels_move_into_the_weights_and_both_losses_together_fall():
    weight, statistics, cost = made(0, loud=(3, 77))
    reader = PeakReader(weight, statistics.row_importance, cost, statistics)
    scales = peak_scales([reader], np.arange(COLUMNS), Blocks(COLUMNS, INT8), Blocks(COLUMNS, INT8))
    ones = np.ones(COLUMNS, np.float32)

    assert np.exp(np.log(scales).mean()) == pytest.approx(1, rel=1e-4)
    assert activation_loss(weight, statistics, scales) < 0.1 * activation_loss(weight, statistics, ones)
    both = [
        weight_loss(weight, statistics, s) + activation_loss(weight, statistics, s) for s in (scales, ones)
    ]
    assert both[0] < 0.2 * both[1]


def test_scales_beat_smoothing_by_magnitudes_at_every_exponent():
    weight, statistics, cost = made(1, loud=(5, 6, 100), factor=12)
    reader = PeakReader(weight, statistics.row_importance, cost, statistics)
    scales = peak_scales([reader], np.arange(COLUMNS), Blocks(COLUMNS, INT8), Blocks(COLUMNS, INT8))

    def loss(s):
        return weight_loss(weight, statistics, s) + activation_loss(weight, statistics, s)

    inputs, weights = np.abs(scaled_inputs(statistics)).max(axis=0), np.abs(weight).max(axis=0)
    smoothed = [inputs**a / weights ** (1 - a) for a in np.linspace(0.3, 0.9, 13)]
    assert loss(scales) < min(loss(s.astype(np.float32)) for s in smoothed)


def test_without_rounding_of_activations_only_the_weights_decide():
    weight, statistics, cost = made(2, loud=(3,))
    reader = PeakReader(weight, statistics.row_importance, cost, statistics)
    scales = peak_scales([reader], np.arange(COLUMNS), Blocks(COLUMNS, INT8), Blocks(0, 0.0))

    ones = np.ones(COLUMNS, np.float32)
    assert weight_loss(weight, statistics, scales) < 0.8 * weight_loss(weight, statistics, ones)


def test_shared_channels_share_a_scale_and_silent_ones_or_nothing_to_gain_are_harmless():
    weight, statistics, cost = made(3)
    silent = np.array(statistics.sample)
    silent[:, 5] = 0
    reader = PeakReader(weight, statistics.row_importance, cost, replace(statistics, sample=silent))
    channels = np.arange(COLUMNS) % 64
    scales = peak_scales([reader], channels, Blocks(32, INT8), Blocks(COLUMNS, INT8))

    assert scales.shape == (64,)
    assert np.isfinite(scales).all()
    assert (scales > 0).all()
    assert np.array_equal(peak_scales([reader], channels, Blocks(32, 0.0), Blocks(0, 0.0)), np.ones(64))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("INT8_CHANNEL_SYM", INT8), ("FP8_E4M3_CHANNEL", 0.0), ("INT6_G64_SYM", 1 / (12 * 31.5**2))],
)
def test_the_largest_number_decides_the_error_of_integers_only(name, expected):
    assert share_of_peak(name) == pytest.approx(expected, rel=0.35)
