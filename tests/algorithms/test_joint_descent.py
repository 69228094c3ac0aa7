"""Descent on all rows together: the kernel is its specification, and the loss only falls."""

import numpy as np
import pytest
from layers import correlated_map

from fewbits import _native
from fewbits.algorithms import gptq, rtn
from fewbits.algorithms.factorization import regularised
from fewbits.algorithms.joint_descent import descend_jointly, sorted_grids, visit_codes
from fewbits.formats import get_format
from instruction_sets import printed_on

FORMATS = ["Q8_0", "Q5_0", "Q5_1", "IQ4_NL", "MXFP4", "Q6_K", "Q4_K", "Q3_K", "Q2_K", "INT4_G64", "INT2_G64"]


def correlated_outputs(rows, seed=1):
    rng = np.random.default_rng(seed)
    gradients = rng.normal(size=(4 * rows, rows)) @ rng.normal(size=(rows, rows)) + 3 * rng.normal(
        size=(4 * rows, 1)
    )
    moment = gradients.T @ gradients
    return (moment / np.diagonal(moment).mean()).astype(np.float32)


def loss(weight, qtensor, hessian, outputs):
    error = (weight - qtensor.dequantize()).astype(np.float64)
    return float(np.einsum("nk,nk->", outputs @ error @ hessian, error))


@pytest.mark.parametrize("name", FORMATS)
def test_each_sweep_lowers_the_loss_of_all_rows(name):
    weight, statistics = correlated_map(rows=40)
    hessian = regularised(statistics.second_moment, 0.2, 0.01)
    outputs = regularised(correlated_outputs(40), 0.3, 0.01)
    start = rtn.quantize(weight, get_format(name))
    before = start.codes.copy()
    once = descend_jointly(weight, start, hessian, outputs[None], 1)
    thrice = descend_jointly(weight, start, hessian, outputs[None], 3)

    losses = [loss(weight, q, hessian, outputs) for q in (start, once, thrice)]
    assert losses[1] < 0.95 * losses[0]
    assert losses[2] <= losses[1] * (1 + 1e-5)
    assert np.array_equal(start.codes, before), "the start was changed"
    assert set(np.unique(thrice.codes)) <= set(get_format(name).codes)


@pytest.mark.parametrize("name", ["Q5_1", "IQ4_NL", "MXFP4", "Q4_K", "INT3_G64"])
def test_the_kernel_finds_what_the_specification_finds(name):
    weight, statistics = correlated_map(rows=6)
    hessian = regularised(statistics.second_moment, 0.2, 0.01)
    outputs = regularised(correlated_outputs(6), 0.3, 0.01)
    start = rtn.quantize(weight, get_format(name))
    grids, order = sorted_grids(start.format, start.params, weight.shape)
    grouped = (*grids.shape[:2], -1)
    rank_of = np.argsort(order, axis=2)
    codes = start.codes.reshape(grouped).astype(np.intp)
    ranks = np.take_along_axis(rank_of, codes, 2).reshape(weight.shape).astype(np.uint8)
    values = start.dequantize()
    pull = (outputs @ (weight - values)) @ hessian
    found = []
    for visit in (visit_codes, _native.visit_codes):
        arrays = [values.copy(), ranks.copy(), grids, pull.copy(), outputs, hessian, np.zeros_like(values)]
        moved = visit(*arrays)
        found.append((moved, arrays[0], arrays[1], arrays[6]))
    assert found[0][0] == found[1][0] > 0
    for specified, fast in zip(found[0][1:], found[1][1:], strict=True):
        assert np.array_equal(specified, fast)


@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_every_instruction_set_gives_the_same_bytes(isa):
    script = (
        "import numpy as np, sys; from fewbits import _native; rng = np.random.default_rng(0);"
        "f = lambda *s: rng.normal(size=s).astype(np.float32); g = np.sort(f(24, 8, 16), 2);"
        "r = rng.integers(16, size=(24, 256)).astype(np.uint8);"
        "v = np.take_along_axis(g, r.reshape(24, 8, 32).astype(int), 2).reshape(24, 256);"
        "a = f(100, 256); h = a.T @ a / 100 + np.eye(256, dtype=np.float32); b = f(99, 24); o = b.T @ b / 99;"
        "n = _native.visit_codes(v, r, g, 9 * f(24, 256), o, h, np.zeros_like(v));"
        "sys.stdout.write(f'{_native.isa()} {n} {r.tobytes().hex()}')"
    )
    chosen = printed_on(None, script)
    assert int(chosen[0]) > 100
    assert printed_on(isa, script) == chosen


def test_arrays_that_dont_fit_are_refused():
    zeros = np.zeros((2, 32), np.float32)
    with pytest.raises(ValueError, match="shapes"):
        _native.visit_codes(
            zeros, zeros.astype(np.uint8), np.zeros((2, 1, 4), np.float32), zeros.copy(),
            np.eye(3, dtype=np.float32), np.eye(32, dtype=np.float32), zeros.copy(),
        )  # fmt: skip


def test_gptq_keeps_it_only_where_held_out_tokens_agree():
    from dataclasses import replace

    from fewbits.calibration.statistics import joint_loss

    weight, statistics = correlated_map(rows=32)
    outputs = correlated_outputs(32)[None].astype(np.float16)
    knowing = replace(statistics, outputs=outputs, held_out_outputs=outputs)
    alone = gptq.quantize(weight, get_format("Q4_0"), statistics)
    together = gptq.quantize(weight, get_format("Q4_0"), knowing, joint=2)
    losses = [joint_loss(weight - q.dequantize(), knowing, held_out=True) for q in (alone, together)]
    assert losses[1] < 0.9 * losses[0]

    opposed = replace(knowing, held_out_outputs=np.eye(32, dtype=np.float16)[None])
    kept = gptq.quantize(weight, get_format("Q4_0"), opposed, joint=2)
    assert joint_loss(weight - kept.dequantize(), opposed, held_out=True) <= joint_loss(
        weight - alone.dequantize(), opposed, held_out=True
    )
