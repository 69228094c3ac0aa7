"""GPTQ against rounding, against the paper's own form, and on layers that break careless code."""

from dataclasses import replace

import numpy as np
import pytest
from layers import correlated_map

from fewbits.algorithms import gptq, imatrix, rtn
from fewbits.algorithms.factorization import factor, regularised
from fewbits.algorithms.held_out import checked, held_out_loss
from fewbits.calibration.statistics import Statistics
from fewbits.errors import FewbitsError
from fewbits.formats import get_format

# Held-out loss relative to importance-weighted rounding: at most 1.1 times what was measured.
RATIOS = {
    "Q4_0": 0.478,
    "IQ4_NL": 0.48,
    "Q5_1": 0.487,
    "Q4_K": 0.497,
    "Q3_K": 0.491,
    "Q2_K": 0.509,
    "IQ4_XS": 0.511,
    "Q6_K": 0.488,
    "INT4_G64": 0.484,
    "INT3_G64": 0.485,
    "INT2_G64": 0.512,
    "NF4": 0.491,
    "FP8_E4M3_CHANNEL": 0.454,
}


def prepared(name, weight):
    return get_format(name).prepare([weight])


@pytest.mark.parametrize("name", RATIOS)
def test_beats_rounding(name):
    weight, statistics = correlated_map()
    fmt = prepared(name, weight)

    plain = held_out_loss(weight, rtn.quantize(weight, fmt), statistics)
    weighted = held_out_loss(weight, imatrix.quantize(weight, fmt, statistics), statistics)
    ours = held_out_loss(weight, gptq.quantize(weight, fmt, statistics), statistics)

    assert weighted <= plain
    assert ours <= RATIOS[name] * weighted


def textbook(weight, fmt, second_moment, damp):
    """Algorithm 1 of the paper with block size 1: U = chol(H⁻¹)ᵀ, each column's error goes to the rest."""
    columns = weight.shape[1]
    hessian = second_moment.astype(np.float64)
    hessian += damp * np.trace(hessian) / columns * np.eye(columns)
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    params = fmt.fit(weight, (1 / np.diagonal(upper) ** 2).astype(np.float32))
    rest, codes = weight.astype(np.float64), np.empty(weight.shape, np.uint8)
    for j in range(columns):
        column = rest[:, j : j + 1].astype(np.float32)
        codes[:, j : j + 1] = fmt.round(column, params, j)
        error = (rest[:, j] - fmt.decode(codes[:, j : j + 1], params, j)[:, 0]) / upper[j, j]
        rest[:, j:] -= np.outer(error, upper[j, j:])
    return codes


@pytest.mark.parametrize("name", ["INT4_CHANNEL", "INT3_CHANNEL_SYM", "FP8_E4M3_CHANNEL"])
def test_is_the_papers_algorithm(name):
    weight, statistics = correlated_map(rows=64, columns=128)
    fmt = prepared(name, weight)

    ours = gptq.quantize(weight, fmt, statistics, shrink=0, damp=0.01, sweeps=0, by_importance=False)

    # The two forms are equal in exact arithmetic; a number half-way between codes may fall either way, and
    # then changes what the rest of its row is rounded from.
    same = (ours.codes == textbook(weight, fmt, statistics.second_moment, 0.01)).all(axis=1)
    assert same.mean() > 0.95


def test_fits_scales_to_compensated_weights():
    """In one block there is nothing to compensate yet; in the next the scales see the feedback."""
    weight, statistics = correlated_map(columns=64)
    fmt = get_format("Q4_0")

    ours = gptq.quantize(weight, fmt, statistics, sweeps=0, by_importance=False)

    hessian = regularised(statistics.second_moment, gptq.SHRINK, gptq.DAMP)
    _, cost = factor(hessian, np.arange(len(hessian)))
    uncompensated = fmt.fit(weight.reshape(-1, 32), np.tile(cost.reshape(2, 32), (len(weight), 1)))
    assert np.array_equal(ours.params.d[::2], uncompensated.d[::2])
    assert np.mean(ours.params.d[1::2] != uncompensated.d[1::2]) > 0.5


@pytest.mark.parametrize("name", ["IQ4_NL", "Q4_K", "INT2_G32"])
def test_renewals_lower_the_loss(name):
    weight, statistics = correlated_map(columns=512)
    fmt = get_format(name)
    seen = replace(statistics, held_out=regularised(statistics.second_moment, gptq.SHRINK, gptq.DAMP))

    losses = [
        held_out_loss(weight, gptq.quantize(weight, fmt, statistics, renewals=n), seen) for n in (0, 1, 2)
    ]

    assert losses[2] < losses[1] < losses[0]


def test_row_chunks_agree(monkeypatch):
    weight, statistics = correlated_map(rows=64)
    fmt = get_format("IQ4_NL")
    whole = gptq.quantize(weight, fmt, statistics)
    monkeypatch.setattr(gptq, "ROWS", 24)
    monkeypatch.setattr("fewbits.algorithms.coordinate_descent.ROWS", 40)

    chunked = gptq.quantize(weight, fmt, statistics)

    # Matrix products of other widths may differ in the last bit, which now and then tips a code.
    assert np.mean(chunked.codes != whole.codes) < 0.01
    assert held_out_loss(weight, chunked, statistics) == pytest.approx(
        held_out_loss(weight, whole, statistics), rel=1e-3
    )


@pytest.mark.parametrize("name", ["Q4_0", "Q3_K", "INT3_G64"])
def test_dead_columns(name):
    """Columns that no token used are rounded like any, and those in use don't suffer."""
    weight, statistics = correlated_map()
    moment = statistics.second_moment.copy()
    moment[:, 64:130] = moment[64:130] = 0
    fmt = get_format(name)

    ours = gptq.quantize(weight, fmt, replace(statistics, second_moment=moment, held_out=moment))

    error = np.abs(ours.dequantize() - weight)
    assert np.isfinite(error).all()
    assert error[:, 64:130].mean() < 0.7 * np.abs(weight[:, 64:130]).mean()
    weighted = imatrix.quantize(weight, fmt, replace(statistics, second_moment=moment))
    only_used = replace(statistics, held_out=moment)
    assert held_out_loss(weight, ours, only_used) < 0.8 * held_out_loss(weight, weighted, only_used)


@pytest.mark.parametrize("name", ["Q5_1", "INT4_G32"])
def test_no_statistics_at_all_is_rounding(name):
    """With an identity Hessian there is no feedback, and with a zero one nothing to weigh by."""
    weight, _ = correlated_map()
    fmt = get_format(name)
    plain = rtn.quantize(weight, fmt)
    ones = np.ones(len(weight), np.float32)
    for moment in (np.eye(256, dtype=np.float32), np.zeros((256, 256), np.float32)):
        ours = gptq.quantize(weight, fmt, Statistics(moment, ones, moment, 1), sweeps=0)

        ratio = np.square(ours.dequantize() - weight).sum() / np.square(plain.dequantize() - weight).sum()
        assert ratio == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("name", ["Q4_0", "Q2_K", "INT2_G64", "NF4", "MXFP4"])
@pytest.mark.parametrize("size", [1e3, 1e30, 3e38])
def test_huge_outlier(name, size):
    """A weight that nothing else compares with spoils its own block and row at most."""
    weight, statistics = correlated_map()
    weight[3, 7] = size
    usual = np.arange(len(weight)) != 3

    ours = gptq.quantize(weight, get_format(name), statistics).dequantize()

    assert np.isfinite(ours).all()
    assert np.abs(ours - weight)[usual].max() < 1


@pytest.mark.parametrize("name", ["Q4_0", "Q4_K", "INT4_G128"])
def test_one_block(name):
    fmt = get_format(name)
    weight, statistics = correlated_map(columns=fmt.block)

    ours = held_out_loss(weight, gptq.quantize(weight, fmt, statistics, renewals=1), statistics)

    assert ours < held_out_loss(weight, imatrix.quantize(weight, fmt, statistics), statistics)


def test_indefinite_moment_is_damped():
    """Sums in float32 can leave a moment a little indefinite."""
    weight, statistics = correlated_map(columns=64)
    moment = (
        statistics.second_moment
        - 0.2 * np.eye(64, dtype=np.float32) * np.trace(statistics.second_moment) / 64
    )

    ours = gptq.quantize(weight, get_format("Q4_0"), replace(statistics, second_moment=moment), shrink=0)

    assert np.abs(ours.dequantize() - weight).max() < 0.5


def test_refuses_statistics_that_are_not_finite():
    weight, statistics = correlated_map(columns=64)
    statistics.second_moment[3, 4] = np.nan

    with pytest.raises(FewbitsError, match="aren't finite"):
        gptq.quantize(weight, get_format("Q4_0"), statistics)


def test_keeps_what_is_better_on_held_out_tokens():
    weight, statistics = correlated_map()
    fmt = get_format("Q4_0")

    good = checked(gptq.quantize(weight, fmt, statistics), "gptq", weight, statistics)
    assert good.algorithm == "gptq"
    assert good.held_out_loss == good.tried_loss < good.baseline_loss

    # Calibrated on noise from three tokens, compensation does harm where tokens aren't like them.
    noise = np.random.default_rng(1).standard_normal((3, 256)).astype(np.float32)
    overfit = replace(statistics, second_moment=noise.T @ noise, held_out=np.eye(256, dtype=np.float32))
    undone = checked(gptq.quantize(weight, fmt, overfit), "gptq", weight, overfit)
    assert undone.algorithm == "imatrix"
    assert undone.held_out_loss == undone.baseline_loss < undone.tried_loss
    assert np.array_equal(undone.qtensor.codes, imatrix.quantize(weight, fmt, overfit).codes)
