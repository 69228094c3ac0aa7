"""Algorithms by name."""

from functools import partial

import numpy as np
import pytest
from layers import correlated_map

from fewbits.algorithms import gptq, rtn, signround
from fewbits.algorithms.held_out import held_out_loss
from fewbits.algorithms.registry import algorithm_names, get_algorithm, needs_statistics
from fewbits.errors import PlanError
from fewbits.formats import get_format


def test_names():
    assert algorithm_names() == ["rtn", "hqq", "imatrix", "gptq", "signround"]
    assert [get_algorithm(name).name for name in algorithm_names()] == algorithm_names()


def test_unknown_name():
    with pytest.raises(PlanError, match="unknown algorithm: found 'magic'; allowed: rtn, hqq, imatrix, gptq"):
        get_algorithm("magic")
    with pytest.raises(PlanError, match="unknown algorithm"):
        needs_statistics("magic")


def test_each_that_knows_more_is_better():
    weight, statistics = correlated_map(rows=32)
    fmt = get_format("Q4_0")

    results = [
        get_algorithm(n).quantize(weight, fmt, statistics) for n in ("rtn", "imatrix", "gptq", "signround")
    ]

    losses = [held_out_loss(weight, result, statistics) for result in results]
    assert losses == sorted(losses, reverse=True)
    assert np.array_equal(results[0].codes, rtn.quantize(weight, fmt).codes)


@pytest.mark.parametrize("name", algorithm_names())
def test_what_needs_statistics_says_so(name):
    weight, _ = correlated_map(rows=8)
    algorithm = get_algorithm(name)
    assert needs_statistics(name) == algorithm.needs_statistics

    if algorithm.needs_statistics:
        with pytest.raises(PlanError, match=f"{name} needs calibration statistics"):
            algorithm.quantize(weight, get_format("Q4_0"))
    else:
        assert algorithm.quantize(weight, get_format("Q4_0")).codes.shape == (8, 256)


def test_floating_point_needs_none():
    assert not needs_statistics("none")


@pytest.mark.parametrize("name", ["rtn", "hqq"])
def test_without_statistics_rows_are_independent(name):
    """They are passed in chunks of any size."""
    weight, _ = correlated_map(rows=24)
    fmt = get_format("Q4_K")
    whole = get_algorithm(name).quantize(weight, fmt).pack()["data"]

    pieces = [get_algorithm(name).quantize(weight[r : r + 5], fmt).pack()["data"] for r in range(0, 24, 5)]

    assert np.array_equal(np.concatenate(pieces), whole)


@pytest.mark.parametrize(
    "quantize",
    [partial(gptq.quantize, renewals=1), partial(signround.quantize, iterations=30)],
    ids=["gptq", "signround"],
)
@pytest.mark.parametrize("name", ["Q5_1", "Q6_K", "INT4_G64", "FP8_E4M3_TENSOR"])
def test_deterministic_and_packs(quantize, name):
    weight, statistics = correlated_map(rows=33, columns=512)
    fmt = get_format(name).prepare([weight])

    first, second = (quantize(weight, fmt, statistics) for _ in range(2))

    for part, data in first.pack().items():
        assert np.array_equal(data, second.pack()[part])
    codes, params = fmt.unpack(first.pack(), first.shape)
    block = fmt.block_of(512)
    assert np.array_equal(fmt.decode(codes.reshape(-1, block), params).reshape(33, 512), first.dequantize())


def test_efforts():
    weight, statistics = correlated_map(rows=32)
    gptq = get_algorithm("gptq")

    balanced, best = (
        gptq.quantize_checked(weight, get_format("IQ4_NL"), statistics, effort)
        for effort in ("balanced", "best")
    )

    assert best.algorithm == balanced.algorithm == "gptq"
    assert best.held_out_loss != balanced.held_out_loss
    assert best.baseline_loss == balanced.baseline_loss
