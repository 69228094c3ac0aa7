"""HQQ lowers the l_p error of every block, and looks at nothing else."""

import numpy as np
import pytest
from layers import correlated_map

from fewbits.algorithms import hqq, rtn
from fewbits.formats import get_format
from fewbits.formats.format import QTensor

FORMATS = [
    *("Q8_0", "Q5_0", "Q4_0", "Q5_1", "Q4_1", "IQ4_NL", "MXFP4"),
    *("Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K", "IQ4_XS"),
    *("INT4_G64", "INT3_G64", "INT2_G64", "INT4_G32_SYM", "INT8_CHANNEL", "INT4_CHANNEL", "INT8_TENSOR"),
    *("NF4", "NVFP4", "FP8_E4M3_CHANNEL", "FP8_E5M2_CHANNEL", "FP8_E4M3_TENSOR"),
]

# Sum of |error|**0.7 relative to the format's own fit by squared error: at most what was measured, plus a tenth of
# the gain.
GAINS = {
    "Q4_0": 0.98,
    "Q5_1": 0.976,
    "Q4_K": 0.9962,
    "INT4_G64": 0.9885,
    "INT3_G64": 0.963,
    "INT2_G64": 0.926,
}


def norms(weight, qtensor):
    """Sum of |error|**0.7 of each block."""
    error = (qtensor.dequantize() - weight).astype(np.float64)
    return (np.abs(error.reshape(-1, qtensor.format.block_of(weight.shape[1]))) ** hqq.POWER).sum(axis=1)


def heavy_tailed(rows=48, columns=256):
    return correlated_map(rows, columns)[0]


@pytest.mark.parametrize("name", FORMATS)
def test_no_block_is_worse_than_rounding(name):
    weight = heavy_tailed()
    fmt = get_format(name).prepare([weight])

    found = norms(weight, hqq.quantize(weight, fmt))

    # 1e-5 for the float32 sums by which rounds are judged.
    rounded = hqq.quantize(weight, fmt, rounds=0)
    assert (found <= norms(weight, rounded) * (1 + 1e-5)).all()


@pytest.mark.parametrize("name", GAINS)
def test_lowers_the_norm(name):
    weight = heavy_tailed(rows=128)
    fmt = get_format(name)

    ratio = norms(weight, hqq.quantize(weight, fmt)).sum() / norms(weight, rtn.quantize(weight, fmt)).sum()

    assert ratio < GAINS[name]


def test_leaves_out_an_outlier():
    """One weight in 64 that fits no grid of the others: squared error gives up on them, the l_p norm on it."""
    weight = np.random.default_rng(0).uniform(-1, 1, (32, 64)).astype(np.float32)
    weight[:, 5] = 6
    fmt = get_format("INT3_G64")
    others = np.arange(64) != 5

    error, plain = (
        np.abs(q.dequantize() - weight)[:, others].mean()
        for q in (hqq.quantize(weight, fmt), rtn.quantize(weight, fmt))
    )

    assert error < 0.9 * plain


@pytest.mark.parametrize("name", ["Q4_0", "Q4_K", "INT3_G64", "INT4_CHANNEL"])
def test_chunks_of_rows_do_not_matter(name, monkeypatch):
    weight = heavy_tailed()
    fmt = get_format(name)
    whole = hqq.quantize(weight, fmt)
    monkeypatch.setattr(hqq, "TILE", 1000)

    pieces = [hqq.quantize(weight[rows], fmt) for rows in (slice(0, 7), slice(7, 48))]

    parts = QTensor(
        fmt,
        weight.shape,
        np.concatenate([p.codes for p in pieces]),
        fmt.params_type.join([p.params for p in pieces]),
    ).pack()
    for part, data in whole.pack().items():
        assert np.array_equal(data, parts[part])


@pytest.mark.parametrize("name", ["Q5_1", "Q3_K", "INT4_G64"])
def test_packs(name):
    weight = heavy_tailed(rows=32)
    fmt = get_format(name)
    found = hqq.quantize(weight, fmt)

    codes, params = fmt.unpack(found.pack(), found.shape)

    block = fmt.block_of(256)
    assert np.array_equal(fmt.decode(codes.reshape(-1, block), params).reshape(32, 256), found.dequantize())


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("size", [0, 1e-40, 1e30, 3e38])
def test_odd_weights(name, size):
    """Zeros, denormal numbers and weights that nothing else compares with."""
    weight = heavy_tailed(rows=16)
    weight[3] = size
    weight[5, 7] = size
    usual = ~np.isin(np.arange(16), (3, 5))
    fmt = get_format(name).prepare([weight])

    found = hqq.quantize(weight, fmt).dequantize()

    assert np.isfinite(found).all()
    if fmt.block:
        assert np.abs(found - weight)[usual].max() < 1


def test_no_rounds_is_rounding():
    weight = heavy_tailed(rows=8)
    fmt = get_format("Q5_1")

    assert np.array_equal(hqq.quantize(weight, fmt, rounds=0).codes, rtn.quantize(weight, fmt).codes)


def test_no_rows():
    assert hqq.quantize(np.zeros((0, 64), np.float32), get_format("Q4_0")).codes.shape == (0, 64)
