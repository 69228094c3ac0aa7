import pickle

import numpy as np
import pytest

from fewbits.algorithms import gptq, rtn
from fewbits.calibration.statistics import Statistics, quadratic_loss
from fewbits.checkpoint.checkpoint import LazyTensor
from fewbits.formats import get_format
from fewbits.planning.prices import (
    RowSample,
    forecast_losses,
    measured_formats,
    price_tensor,
    sample_rows,
    sample_tensor,
)

FORMATS = [get_format(n) for n in ("IQ4_NL", "Q4_1", "Q5_0", "Q5_1", "Q8_0")]


def layer(seed=0, rows=512, columns=128, tokens=2000):
    """A heavy-tailed matrix with rows of very different importance, and statistics from correlated inputs."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(columns, columns)) * rng.lognormal(0, 0.7, columns)
    x = rng.normal(size=(2 * tokens, columns)) @ mix
    w = rng.lognormal(0, 1.5, 2 * tokens)
    seen, held = ((x[s] * w[s, None]).T @ x[s] / tokens * 1e-6 for s in (slice(tokens), slice(tokens, None)))
    importance = rng.lognormal(0, 1.5, rows)
    weight = rng.standard_t(4, (rows, columns)) * rng.lognormal(0, 0.4, (rows, 1)) * 0.05
    statistics = Statistics(
        seen.astype(np.float32), (importance / importance.mean()).astype(np.float32), held.astype(np.float32),
        tokens,
    )  # fmt: skip
    return weight.astype(np.float32), statistics


def round_weights(weight, fmt, statistics):
    return rtn.quantize(weight, fmt, statistics.importance())


class Matrix(LazyTensor):
    name, dtype = "matrix", "F32"

    def __init__(self, weight):
        self.weight, self.shape = weight, weight.shape

    def rows(self, start, stop):
        return self.weight[start:stop].copy()


def test_a_sample_estimates_the_total_without_bias():
    rng = np.random.default_rng(1)
    forecast = rng.lognormal(0, 1.5, 700)
    losses = forecast * rng.lognormal(0, 0.3, 700)
    samples = [sample_rows(forecast, 32, seed) for seed in range(400)]
    assert {len(s.rows) for s in samples} <= {31, 32, 33}
    totals = np.array([losses[s.rows] @ s.factors for s in samples]) / losses.sum()
    assert abs(totals.mean() - 1) < 4 * totals.std() / 20
    assert totals.std() < 0.08  # uniform sampling: 0.5
    assert all((np.diff(s.rows) > 0).all() for s in samples)


def test_small_matrices_are_taken_whole_and_dominant_rows_for_sure():
    whole = sample_rows(np.arange(20.0), 32)
    assert whole.rows.tolist() == list(range(20))
    assert whole.factors.tolist() == [1] * 20
    forecast = np.ones(1000)
    forecast[[3, 500]] = 1e6
    sample = sample_rows(forecast, 16)
    assert {3, 500} <= set(sample.rows.tolist())
    assert sample.factors[np.isin(sample.rows, [3, 500])].tolist() == [1, 1]


@pytest.mark.parametrize("forecast", [np.zeros(100), np.r_[np.zeros(99), 1.0]])
def test_rows_without_a_forecast_can_be_drawn(forecast):
    drawn = np.concatenate([sample_rows(forecast, 10, seed).rows for seed in range(200)])
    assert len(set(drawn.tolist())) == 100
    totals = [sample_rows(forecast, 10, seed).factors.sum() for seed in range(200)]
    assert abs(np.mean(totals) - 100) < 5


def test_forecasts_rank_rows_as_their_losses_do():
    weight, statistics = layer()
    error = round_weights(weight, get_format("Q4_1"), statistics).dequantize() - weight
    losses = np.einsum("nk,nk->n", error @ statistics.second_moment, error)
    forecast = forecast_losses(weight, statistics.importance())
    assert np.corrcoef(np.log(losses), np.log(forecast))[0, 1] > 0.8


@pytest.mark.parametrize("seed", range(3))
def test_prices_from_a_sample_are_those_of_the_whole_matrix(seed):
    weight, statistics = layer(seed)
    rows, sample = sample_tensor(Matrix(weight), statistics, 48, seed)
    np.testing.assert_array_equal(rows, weight[sample.rows])
    everything = RowSample(np.arange(len(weight)), np.ones(len(weight), np.float32))
    estimate = price_tensor(rows, sample, statistics, FORMATS, gptq.quantize)
    truth = price_tensor(weight, everything, statistics, FORMATS, gptq.quantize, measured=FORMATS)
    assert set(estimate) == set(truth) == {"F16", *(f.name for f in FORMATS)}
    ratios = np.array([estimate[f.name] / truth[f.name] for f in FORMATS])
    assert (np.abs(np.log(ratios)) < 0.25).all(), ratios


def test_a_price_is_the_loss_on_held_out_tokens_at_the_scale_of_all_tokens():
    weight, statistics = layer()
    everything = RowSample(np.arange(len(weight)), np.ones(len(weight), np.float32))
    fmt = get_format("Q5_0")
    harder = Statistics(
        statistics.second_moment, statistics.row_importance, 3 * statistics.held_out, statistics.tokens
    )
    price = price_tensor(weight, everything, statistics, [fmt], gptq.quantize)["Q5_0"]
    assert price == pytest.approx(
        price_tensor(weight, everything, harder, [fmt], gptq.quantize)["Q5_0"], rel=1e-4
    )
    error = gptq.quantize(weight, fmt, statistics).dequantize() - weight
    rounding = round_weights(weight, fmt, statistics).dequantize() - weight
    seen, held = (
        [quadratic_loss(e, m, statistics.row_importance) for e in (error, rounding)]
        for m in (statistics.second_moment, statistics.held_out)
    )
    assert price == pytest.approx(held[0] * seen[1] / held[1], rel=1e-4)
    assert seen[0] < price < seen[1]


def test_without_held_out_tokens_all_tokens_judge():
    weight, statistics = layer()
    alone = Statistics(
        statistics.second_moment,
        statistics.row_importance,
        np.zeros_like(statistics.held_out),
        statistics.tokens,
    )
    everything = RowSample(np.arange(len(weight)), np.ones(len(weight), np.float32))
    fmt = get_format("Q4_1")
    error = round_weights(weight, fmt, alone).dequantize() - weight
    expected = quadratic_loss(error, alone.second_moment, alone.row_importance)
    assert price_tensor(weight, everything, alone, [fmt], round_weights)["Q4_1"] == pytest.approx(expected)


def test_formats_that_are_not_run_get_roundings_price_times_a_siblings_or_the_least_gain():
    weight, statistics = layer(rows=40)
    everything = RowSample(np.arange(40), np.ones(40, np.float32))
    ran = []

    def algorithm(rows, fmt, seen):
        ran.append(fmt.name)
        return gptq.quantize(rows, fmt, seen)

    prices = price_tensor(weight, everything, statistics, FORMATS, algorithm)
    assert sorted(ran) == ["IQ4_NL", "Q5_0", "Q5_1"]
    rounding = price_tensor(weight, everything, statistics, FORMATS, round_weights, measured=FORMATS)
    gain = {f.name: prices[f.name] / rounding[f.name] for f in FORMATS}
    assert gain["Q4_1"] == pytest.approx(gain["Q5_1"])
    assert gain["Q8_0"] == pytest.approx(max(gain[n] for n in ("IQ4_NL", "Q5_0", "Q5_1")))
    assert gain["Q5_1"] < 0.9


def test_which_formats_are_run():
    assert [f.name for f in measured_formats(FORMATS)] == ["Q5_1", "Q5_0", "IQ4_NL"]
    assert [f.name for f in measured_formats([get_format("Q8_0")])] == ["Q8_0"]
    wide = [get_format(n) for n in ("Q8_0", "Q6_K", "Q5_1", "Q5_K", "Q4_K", "Q3_K", "Q2_K")]
    assert [f.name for f in measured_formats(wide, near=3.0)] == ["Q4_K", "Q3_K", "Q2_K"]
    assert [f.name for f in measured_formats(wide, near=16)] == [f.name for f in measured_formats(wide)]


def test_bits_order_prices_and_half_precision_is_nearly_free():
    weight, statistics = layer()
    rows, sample = sample_tensor(Matrix(weight), statistics)
    prices = price_tensor(rows, sample, statistics, FORMATS, gptq.quantize)
    ordered = [prices[n] for n in ("Q4_1", "Q5_1", "Q8_0", "F16")]
    assert ordered == sorted(ordered, reverse=True)
    assert prices["F16"] < 1e-2 * prices["Q8_0"]
    assert price_tensor(rows, sample, statistics, [], gptq.quantize) == {"F16": prices["F16"]}


def test_arguments_and_prices_survive_the_way_to_another_process():
    weight, statistics = layer(rows=64)
    rows, sample = sample_tensor(Matrix(weight), statistics, 16)
    arguments = (rows, sample, statistics, FORMATS, gptq.quantize)
    function, copied = pickle.loads(pickle.dumps((price_tensor, arguments)))
    assert function(*copied) == price_tensor(*arguments)


def test_numbers_beyond_half_precision_get_a_finite_price():
    weight, statistics = layer(rows=8)
    weight[0, 0] = 1e6
    everything = RowSample(np.arange(8), np.ones(8, np.float32))
    assert np.isfinite(price_tensor(weight, everything, statistics, [], gptq.quantize)["F16"])
