"""Coordinate descent never raises a row's loss, whatever it starts from, and knows what is linear."""

from itertools import pairwise

import numpy as np
import pytest
from layers import correlated_map

from fewbits.algorithms import rtn
from fewbits.algorithms.coordinate_descent import chosen, descend
from fewbits.algorithms.factorization import regularised
from fewbits.formats import get_format
from fewbits.formats.format import QTensor

FORMATS = [
    *("Q8_0", "Q5_0", "Q4_0", "Q5_1", "Q4_1", "IQ4_NL", "MXFP4"),
    *("Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K", "IQ4_XS"),
    *("INT4_G64", "INT3_G64", "INT2_G64", "INT4_G32_SYM", "INT8_CHANNEL", "INT4_CHANNEL", "INT8_TENSOR"),
    *("NF4", "NVFP4", "FP8_E4M3_CHANNEL", "FP8_E5M2_CHANNEL", "FP8_E4M3_TENSOR"),
]


def loss_of_rows(weight, qtensor, hessian):
    error = (qtensor.dequantize() - weight).astype(np.float64)
    return np.einsum("nk,nk->n", error @ hessian, error)


@pytest.mark.parametrize("name", FORMATS)
def test_never_raises_the_loss(name):
    weight, statistics = correlated_map(rows=48)
    hessian = regularised(statistics.second_moment, 0.2, 0.01)
    rounded = rtn.quantize(weight, get_format(name).prepare([weight]))
    before = rounded.codes.copy()
    losses = [loss_of_rows(weight, rounded, hessian)]
    current = rounded
    for _ in range(3):
        current = descend(weight, current, hessian)
        losses.append(loss_of_rows(weight, current, hessian))

    # 1e-5 for the float32 sums by which steps are judged.
    for earlier, later in pairwise(losses):
        assert (later <= earlier * (1 + 1e-5)).all()
    assert losses[-1].sum() < 0.8 * losses[0].sum()
    assert np.array_equal(rounded.codes, before), "the start was changed"


@pytest.mark.parametrize("name", FORMATS)
def test_values_are_linear_in_the_parts(name):
    """decode = Σ coefficient * term + what the other parts decide, so changes of a part are linear."""
    weight, _ = correlated_map(rows=8)
    fmt = get_format(name).prepare([weight])
    rounded = rtn.quantize(weight, fmt)
    codes, params = rounded.codes.reshape(-1, fmt.block_of(256)), rounded.params
    for part in fmt.linear_parts():
        coefficients = part.coefficients(params)
        replaced = part.replace(params, tuple(1.37 * c for c in coefficients))
        terms = part.terms(codes[:, part.columns], params)
        shifts = [new - old for new, old in zip(part.coefficients(replaced), coefficients, strict=True)]

        change = fmt.decode(codes, replaced) - fmt.decode(codes, params)

        predicted = np.zeros_like(change)
        predicted[:, part.columns] = sum(
            shift[:, None] * term for shift, term in zip(shifts, terms, strict=True)
        )
        bfloat16_rounding = 2.0**-8 * np.abs(weight).max() * 2
        assert np.abs(change - predicted).max() <= bfloat16_rounding


@pytest.mark.parametrize("name", ["Q4_0", "Q5_1", "Q4_K", "Q6_K", "INT4_G64", "NF4", "NVFP4"])
def test_replacing_by_the_same_changes_nothing(name):
    weight, _ = correlated_map(rows=8)
    fmt = get_format(name).prepare([weight])
    rounded = rtn.quantize(weight, fmt)
    for part in fmt.linear_parts():
        same = part.replace(rounded.params, part.coefficients(rounded.params))

        assert np.array_equal(
            QTensor(fmt, rounded.shape, rounded.codes, same).dequantize(), rounded.dequantize()
        )


@pytest.mark.parametrize("name", ["Q4_0", "Q5_1", "Q3_K", "INT4_G64", "NF4", "FP8_E4M3_CHANNEL"])
def test_finds_scales_that_were_spoilt(name):
    """With the codes of good scales, one block's 30 % off, it comes back to nearly the good one's loss."""
    weight, statistics = correlated_map(rows=48)
    hessian = regularised(statistics.second_moment, 0.2, 0.01)
    fmt = get_format(name)
    good = descend(weight, rtn.quantize(weight, fmt), hessian, 3)
    part = fmt.linear_parts()[-1]
    spoilt_params = part.replace(good.params, tuple(1.3 * c for c in part.coefficients(good.params)))
    first_of_row = np.arange(48 * 256 // fmt.block_of(256)) % (256 // fmt.block_of(256)) == 0
    spoilt = QTensor(fmt, good.shape, good.codes, chosen(first_of_row, spoilt_params, good.params))

    repaired = loss_of_rows(weight, descend(weight, spoilt, hessian, 3), hessian).sum()

    assert loss_of_rows(weight, spoilt, hessian).sum() > 1.3 * loss_of_rows(weight, good, hessian).sum()
    assert repaired < 1.1 * loss_of_rows(weight, good, hessian).sum()


def test_no_sweeps_is_the_start():
    weight, statistics = correlated_map(rows=8)
    start = rtn.quantize(weight, get_format("Q4_0"))

    assert descend(weight, start, statistics.second_moment, 0) is start
