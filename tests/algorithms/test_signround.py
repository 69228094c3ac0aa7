"""Learned rounding never raises the loss that it is given, and finds what one weight at a time doesn't."""

from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from layers import correlated_map

from fewbits.algorithms import gptq, imatrix, rtn, signround
from fewbits.algorithms.coordinate_descent import descend
from fewbits.algorithms.factorization import regularised
from fewbits.algorithms.held_out import held_out_loss
from fewbits.calibration.statistics import Statistics
from fewbits.errors import FewbitsError
from fewbits.formats import get_format

FORMATS = [
    *("Q8_0", "Q5_0", "Q4_0", "Q5_1", "Q4_1", "IQ4_NL", "MXFP4"),
    *("Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K", "IQ4_XS"),
    *("INT4_G64", "INT3_G64", "INT2_G64", "INT4_G32_SYM", "INT8_CHANNEL", "INT4_CHANNEL", "INT8_TENSOR"),
    *("NF4", "NVFP4", "FP8_E4M3_CHANNEL", "FP8_E5M2_CHANNEL", "FP8_E4M3_TENSOR"),
]


def loss_of_rows(weight, qtensor, hessian):
    error = (qtensor.dequantize() - weight).astype(np.float64)
    return np.einsum("nk,nk->n", error @ hessian, error)


def hessian_of(statistics):
    return regularised(statistics.second_moment, gptq.SHRINK, gptq.DAMP)


def outputs_of(rows, seed=3):
    """Correlations of the gradients of neighbouring rows in two blocks, float32 [2, rows / 2, rows / 2]."""
    rng = np.random.default_rng(seed)
    factors = rng.standard_normal((2, rows // 2, 6))
    moments = factors @ factors.transpose(0, 2, 1) / 6 + 0.3 * np.eye(rows // 2)
    return moments.astype(np.float32)


def joint(weight, qtensor, hessian, outputs):
    error = (qtensor.dequantize() - weight).astype(np.float64)
    size = outputs.shape[1]
    return [
        float(np.sum((part @ error[i * size : (i + 1) * size] @ hessian) * error[i * size : (i + 1) * size]))
        for i, part in enumerate(outputs)
    ]


@pytest.mark.parametrize("name", FORMATS)
def test_never_raises_the_loss_of_a_row(name):
    weight, statistics = correlated_map(rows=48)
    hessian = hessian_of(statistics)
    fmt = get_format(name).prepare([weight])
    start = rtn.quantize(weight, fmt)
    before = start.codes.copy()

    learned = signround.learn(weight, start, hessian, iterations=40)
    refined = signround.refine(weight, start, hessian, iterations=40)

    losses = [loss_of_rows(weight, q, hessian) for q in (start, learned, refined)]
    # 1e-5 for the float32 sums by which iterates are judged.
    for earlier, later in pairwise(losses):
        assert (later <= earlier * (1 + 1e-5)).all()
    assert losses[1].sum() < 0.75 * losses[0].sum()
    assert np.array_equal(start.codes, before), "the start was changed"


@pytest.mark.parametrize("name", ["Q4_0", "IQ4_NL", "Q3_K", "INT4_G64", "INT3_G64", "INT2_G64"])
def test_goes_on_where_gptq_ends(name):
    """From GPTQ's result at effort best, which coordinate descent hardly improves any more."""
    weight, statistics = correlated_map()
    fmt = get_format(name)
    found = gptq.quantize(weight, fmt, statistics, renewals=3)
    hessian = hessian_of(statistics)

    refined = signround.refine(weight, found, hessian)
    descended = descend(weight, found, hessian, 3)

    losses = [loss_of_rows(weight, q, hessian).sum() for q in (refined, descended, found)]
    assert losses[0] < 0.985 * losses[2]
    assert losses[0] < losses[1]
    assert held_out_loss(weight, refined, statistics) < held_out_loss(weight, found, statistics)


@pytest.mark.parametrize("name", ["Q4_0", "IQ4_NL", "Q4_K", "INT2_G64", "NF4", "FP8_E4M3_CHANNEL"])
def test_from_rounding_it_comes_near_to_gptq(name):
    weight, statistics = correlated_map()
    fmt = get_format(name)

    ours = signround.quantize(weight, fmt, statistics, start=imatrix.quantize)

    loss = held_out_loss(weight, ours, statistics)
    assert loss < 0.55 * held_out_loss(weight, imatrix.quantize(weight, fmt, statistics), statistics)
    assert loss < 1.06 * held_out_loss(weight, gptq.quantize(weight, fmt, statistics), statistics)


@pytest.mark.parametrize("name", ["Q4_0", "INT2_G64", "MXFP4", "NVFP4", "FP8_E5M2_CHANNEL"])
def test_candidates_are_neighbours_on_the_grid(name):
    """Between a weight's two codes the format has no third value, and the weight's own code is the nearer one."""
    weight, _ = correlated_map(rows=16)
    fmt = get_format(name).prepare([weight])
    start = rtn.quantize(weight, fmt)
    other, jump, boundary = signround._candidates(weight, start)
    block = fmt.block_of(256)
    values, there = (
        fmt.decode(codes.reshape(-1, block), start.params).reshape(weight.shape)
        for codes in (start.codes, other)
    )

    assert np.array_equal(there - values, jump)
    # The others lie beyond an end of the grid.
    assert np.mean(jump != 0) > 0.85
    for share in (0.1, 0.3, 0.7, 0.9):
        between = (values + np.float32(share) * jump).reshape(-1, block)
        found = fmt.decode(fmt.round(between, start.params), start.params).reshape(weight.shape)
        # Of floating point's finest numbers, far below the largest of a row, some are passed over.
        assert np.mean(found == (values if share < 0.5 else there)) > 0.99
    assert (boundary[jump != 0] <= 0.5).all()
    assert (boundary[jump == 0] > 0.5).all()


@pytest.mark.parametrize("name", ["Q4_0", "INT3_G64"])
def test_rows_that_matter_together(name):
    weight, statistics = correlated_map(rows=32)
    hessian, outputs = hessian_of(statistics), outputs_of(32)
    alone = gptq.quantize(weight, get_format(name), statistics, renewals=1)

    together = signround.refine(weight, alone, hessian, outputs)

    losses = [joint(weight, q, hessian, outputs) for q in (alone, together)]
    assert all(after < 0.9 * before for before, after in zip(*losses, strict=True))


def test_independent_rows_are_the_same_as_a_diagonal():
    """With equal importance and no correlation among rows, their sum falls as each does."""
    weight, statistics = correlated_map(rows=32)
    hessian = hessian_of(statistics)
    start = imatrix.quantize(weight, get_format("Q4_0"), statistics)

    one = signround.learn(weight, start, hessian)
    other = signround.learn(weight, start, hessian, np.eye(32, dtype=np.float32)[None])

    assert np.mean(one.codes != other.codes) < 0.02
    assert loss_of_rows(weight, one, hessian).sum() <= 1.001 * loss_of_rows(weight, other, hessian).sum()


def test_pieces_agree(monkeypatch):
    weight, statistics = correlated_map(rows=80)
    hessian = hessian_of(statistics)
    start = imatrix.quantize(weight, get_format("IQ4_NL"), statistics)
    whole = signround.learn(weight, start, hessian)
    monkeypatch.setattr(signround, "PIECE", 1)

    pieces = signround.learn(weight, start, hessian)

    # Matrix products of other heights may differ in the last bit, which now and then tips a code.
    assert np.mean(pieces.codes != whole.codes) < 0.03
    assert loss_of_rows(weight, pieces, hessian).sum() == pytest.approx(
        loss_of_rows(weight, whole, hessian).sum(), rel=5e-3
    )


@pytest.mark.parametrize("name", ["Q4_0", "Q2_K", "INT2_G64", "NF4", "MXFP4"])
@pytest.mark.parametrize("size", [0, 1e-40, 1e30, 3e38])
def test_odd_weights(name, size):
    """Rows that nothing else compares with spoil themselves at most."""
    weight, statistics = correlated_map(rows=32)
    weight[3, 7] = size
    weight[5] = size
    usual = ~np.isin(np.arange(32), (3, 5))
    fmt = get_format(name)

    ours = signround.quantize(weight, fmt, statistics, iterations=30).dequantize()

    assert np.isfinite(ours).all()
    assert np.abs(ours - weight)[usual].max() < 1


# Q4_0's plain rounding has a scale that nothing was searched for, so that there is something to gain.
@pytest.mark.parametrize(("name", "least"), [("Q4_0", 0.95), ("INT4_G64", 0.99)])
def test_no_statistics_at_all_is_near_rounding(name, least):
    """Columns that no token used: nothing is gained by moving them, so they stay."""
    weight, _ = correlated_map(rows=16)
    ones, nothing = np.ones(16, np.float32), np.zeros((256, 256), np.float32)
    start = partial(rtn_of, fmt=get_format(name))

    ours = signround.quantize(
        weight, get_format(name), Statistics(nothing, ones, nothing, 1), start=lambda w, f, s: start(w)
    )

    plain = start(weight)
    ratio = np.square(ours.dequantize() - weight).sum() / np.square(plain.dequantize() - weight).sum()
    assert least < ratio <= 1 + 1e-6


def rtn_of(weight, fmt):
    return rtn.quantize(weight, fmt)


def test_uses_what_is_known_of_outputs():
    weight, statistics = correlated_map(rows=32)
    outputs = outputs_of(32)
    known = replace(
        statistics, outputs=outputs.astype(np.float16), held_out_outputs=outputs.astype(np.float16)
    )
    fmt = get_format("Q4_0")

    with_them, without = (
        held_out_loss(weight, signround.quantize(weight, fmt, s), known) for s in (known, statistics)
    )

    assert with_them < 0.9 * without


def test_no_rounds_is_the_start():
    weight, statistics = correlated_map(rows=8)
    start = rtn.quantize(weight, get_format("Q4_0"))

    assert signround.refine(weight, start, statistics.second_moment, rounds=0) is start
    assert np.array_equal(
        signround.learn(weight, start, statistics.second_moment, iterations=0).codes, start.codes
    )


def test_refuses_statistics_that_are_not_finite():
    weight, statistics = correlated_map(columns=64)
    statistics.second_moment[3, 4] = np.nan

    with pytest.raises(FewbitsError, match="aren't finite"):
        signround.quantize(weight, get_format("Q4_0"), statistics)
