"""Algorithms by name."""

import numpy as np
import pytest
from layers import correlated_map

from fewbits.algorithms import rtn
from fewbits.algorithms.held_out import held_out_loss
from fewbits.algorithms.registry import algorithm_names, get_algorithm
from fewbits.errors import PlanError
from fewbits.formats import get_format


def test_names():
    assert algorithm_names() == ["rtn", "imatrix", "gptq"]
    assert [get_algorithm(name).name for name in algorithm_names()] == algorithm_names()


def test_unknown_name():
    with pytest.raises(PlanError, match="unknown algorithm: found 'magic'; allowed: rtn, imatrix, gptq"):
        get_algorithm("magic")


def test_each_is_better_than_the_one_before():
    weight, statistics = correlated_map(rows=32)
    fmt = get_format("Q4_0")

    results = [get_algorithm(name).quantize(weight, fmt, statistics) for name in algorithm_names()]

    losses = [held_out_loss(weight, result, statistics) for result in results]
    assert losses == sorted(losses, reverse=True)
    assert np.array_equal(results[0].codes, rtn.quantize(weight, fmt).codes)


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
