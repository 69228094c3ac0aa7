"""Scales of channels: what they are worth, and what they leave alone."""

from dataclasses import replace

import numpy as np
import pytest

from fewbits.algorithms import gptq
from fewbits.algorithms.channel_scales import Reader, channel_scales, own_costs
from fewbits.calibration.statistics import Statistics, joint_loss
from fewbits.formats import get_format


def made_statistics(rng, rows, columns, spread=1.0):
    """Of a map whose inputs differ in size by channel, with correlations between them and between outputs."""
    mix = rng.normal(size=(columns, columns)) / np.sqrt(columns)
    sizes = np.exp(rng.normal(0, spread, columns))
    x = (rng.normal(size=(4 * columns, columns)) @ (np.eye(columns) + 0.5 * mix)) * sizes
    g = rng.normal(size=(4 * columns, rows)) @ (
        np.eye(rows) + 0.3 * rng.normal(size=(rows, rows)) / np.sqrt(rows)
    )
    outputs = (g.T @ g / len(g))[None]
    outputs /= np.diagonal(outputs[0]).mean()
    moment = (x.T @ x / len(x)).astype(np.float32)
    peaks = {32: np.square(np.abs(x).reshape(len(x), -1, 32).max(axis=2)).mean(axis=0).astype(np.float32)}
    sample = (x / np.abs(x).max()).astype(np.float16)
    importance = np.diagonal(outputs[0]).astype(np.float32)
    return Statistics(
        moment, importance, moment.copy(), len(x), outputs.astype(np.float16), None, peaks, sample
    )


@pytest.mark.parametrize("name", ["Q4_0", "Q5_1", "INT3_G32"])
def test_scales_lower_the_loss_of_rounding(name):
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(64, 128)).astype(np.float32)
    statistics = made_statistics(rng, 64, 128)
    reader = Reader(weight, statistics.row_importance, statistics)
    scales = channel_scales([reader], np.arange(128), 32)

    def loss(weight, statistics):
        fmt = get_format(name)
        return joint_loss(gptq.quantize(weight, fmt, statistics).dequantize() - weight, statistics)

    assert loss(weight * scales, statistics.rescaled(scales)) < 0.9 * loss(weight, statistics)
    assert np.exp(np.log(scales).mean()) == pytest.approx(1, rel=1e-4)


def test_an_outlier_is_made_smaller_where_activations_are_rounded():
    rng = np.random.default_rng(2)
    weight = rng.normal(size=(32, 64)).astype(np.float32)
    statistics = made_statistics(rng, 32, 64, spread=0.0)
    x = np.array(statistics.sample, np.float32)
    x[:, 7] *= 30
    peaks = {32: np.square(np.abs(x).reshape(len(x), -1, 32).max(axis=2)).mean(axis=0)}
    loud = replace(statistics, sample=x.astype(np.float16), peaks=peaks)
    reader = Reader(weight, loud.row_importance, loud)
    with_rounding = channel_scales([reader], np.arange(64), 32, 32)
    without = channel_scales([reader], np.arange(64), 32)

    assert with_rounding[7] > 1.4 * without[7]
    assert loud.rescaled(with_rounding).peaks[32].sum() < 0.7 * peaks[32].sum()


def test_columns_that_share_a_channel_share_its_scale_and_silent_ones_are_harmless():
    rng = np.random.default_rng(3)
    weight = rng.normal(size=(16, 64)).astype(np.float32)
    statistics = made_statistics(rng, 16, 64)
    moment = statistics.second_moment.copy()
    moment[5], moment[:, 5] = 0, 0
    weight[:, 9] = 0
    reader = Reader(weight, statistics.row_importance, replace(statistics, second_moment=moment))
    scales = channel_scales([reader], np.arange(64) % 32, 32, 32)

    assert scales.shape == (32,)
    assert np.isfinite(scales).all()
    assert (scales > 0).all()


def test_rescaled_statistics_give_the_same_loss_to_the_same_error():
    rng = np.random.default_rng(4)
    statistics = made_statistics(rng, 24, 64)
    columns = np.exp(rng.normal(0, 0.5, 64)).astype(np.float32)
    rows = np.exp(rng.normal(0, 0.5, 24)).astype(np.float32)
    error = rng.normal(size=(24, 64)).astype(np.float32)
    changed = statistics.rescaled(columns, rows)

    assert joint_loss(error * rows[:, None] * columns, changed) == pytest.approx(
        joint_loss(error, statistics), rel=2e-3
    )
    assert changed.row_importance.mean() == pytest.approx(1, rel=1e-5)
    old, new = statistics.peaks[32], statistics.rescaled(columns).peaks[32]
    x = np.array(statistics.sample, np.float32)
    growth = [np.square(np.abs(v).reshape(len(x), -1, 32).max(axis=2)).mean(axis=0) for v in (x, x / columns)]
    assert np.allclose(new / old, growth[1] / growth[0], rtol=1e-3)


def test_own_costs_are_what_other_columns_cannot_make_up_for():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(500, 8)).astype(np.float32)
    x[:, 0] = x[:, 1] + 0.1 * rng.normal(size=500)
    costs = own_costs(x.T @ x / 500)

    assert costs[0] < 0.1
    assert costs[4] == pytest.approx(1, abs=0.2)
