"""What every format must keep, and the tensors it is tried on. Used by the tests of formats outside GGUF."""

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fewbits.algorithms import rtn
from fewbits.errors import FormatError


def heavy_tailed(rows, columns, seed=0):
    """Like a language model's weights: Student-t with 5 degrees of freedom, log-normal scale per channel."""
    rng = np.random.default_rng(seed)
    channel = 0.02 * np.exp(rng.normal(0, 0.5, (rows, 1)))
    return (rng.standard_t(5, (rows, columns)) * channel).astype(np.float32)


def uneven_importance(columns, seed=0):
    """Like the mean squares of activations: a few columns matter a hundred times more than most."""
    rng = np.random.default_rng(seed)
    return np.exp(rng.normal(0, 1.5, columns)).astype(np.float32)


def finite_weights(columns):
    """Any finite float32 [1 … 6, columns]; most are far from what a model holds."""
    number = st.floats(width=32, allow_nan=False, allow_infinity=False)
    return st.integers(1, 6).flatmap(lambda rows: arrays(np.float32, (rows, columns), elements=number))


def hard_weights(columns):
    """Tensors that break careless quantizers, by name: float32 [3, columns]."""
    rng = np.random.default_rng(7)
    usual = rng.standard_normal((3, columns)).astype(np.float32)
    outlier, negative = usual.copy(), usual.copy()
    outlier[1, 5], negative[1, 5] = 1e38, -3.4e38
    extremes = usual.copy()
    extremes[0, :2] = np.finfo(np.float32).max, np.finfo(np.float32).min
    return {
        "zeros": np.zeros((3, columns), np.float32),
        "negative zeros": np.full((3, columns), -0.0, np.float32),
        "constant": np.full((3, columns), 0.3, np.float32),
        "negative constant": np.full((3, columns), -0.3, np.float32),
        "outlier": outlier,
        "negative outlier": negative,
        "extremes": extremes,
        "largest": np.full((3, columns), np.finfo(np.float32).max, np.float32),
        "subnormal": usual * np.float32(1e-40),
        "smallest subnormal": np.full((3, columns), 1e-45, np.float32),
        "tiny": usual * np.float32(1e-37),
        "one number": np.eye(3, columns, dtype=np.float32),
    }


def quantize(fmt, weight, importance=None):
    """Codes [N, K], params and decoded [N, K] of a whole tensor."""
    made = rtn.quantize(weight, fmt.prepare([weight]), importance)
    return made.codes, made.params, made.dequantize()


def loss(weight, decoded, importance=None):
    """Weighted squared error in float64."""
    error = (weight.astype(np.float64) - decoded) ** 2
    return float((error if importance is None else error * importance).sum())


def same_bits(left, right):
    """Equal float32 arrays, the sign of zero included."""
    assert left.dtype == right.dtype == np.float32
    np.testing.assert_array_equal(left.view(np.uint32), right.view(np.uint32))


def check_finite(fmt, weight, importance=None):
    codes, params, decoded = quantize(fmt, weight, importance)

    assert np.isfinite(decoded).all()
    assert codes.dtype == np.uint8
    check_packing(fmt, codes, params, decoded)


def check_packing(fmt, codes, params, decoded):
    parts = fmt.pack(codes, params)
    again, again_params = fmt.unpack(parts, codes.shape)
    values = fmt.decode(again.reshape(-1, fmt.block_of(codes.shape[1])), again_params)

    np.testing.assert_array_equal(again, codes)
    same_bits(values.reshape(codes.shape), decoded)
    assert sum(part.nbytes for part in parts.values()) == fmt.nbytes(codes.shape)


def check_chunks(fmt, weight, importance=None):
    """Rows quantized and packed in chunks give the parts of the whole, byte for byte."""
    rows = len(weight)
    step = fmt.rows_together
    assert rows > step, "the test needs more rows than one chunk has"
    whole = fmt.pack(*quantize(fmt, weight, importance)[:2])
    bound = fmt.prepare(weight[i : i + 1] for i in range(rows))
    pieces = []
    for start in range(0, rows, step):
        chunk = weight[start : start + step]
        pieces.append(rtn.quantize(chunk, bound, importance).pack())
    for name, part in whole.items():
        if name in fmt.tensor_parts:
            for piece in pieces:
                np.testing.assert_array_equal(piece[name], part)
        else:
            np.testing.assert_array_equal(np.concatenate([piece[name] for piece in pieces]), part)


def check_columns(fmt, weight):
    """Rounding and decoding column by column gives what whole blocks give."""
    fmt = fmt.prepare([weight])
    block = fmt.block_of(weight.shape[1])
    blocks = weight.reshape(-1, block)
    params = rtn.quantize(weight, fmt).params
    codes = fmt.round(blocks, params)
    decoded = fmt.decode(codes, params)
    for j in range(block):
        column = fmt.round(blocks[:, j : j + 1], params, column=j)
        np.testing.assert_array_equal(column, codes[:, j : j + 1])
        same_bits(fmt.decode(column, params, column=j), np.ascontiguousarray(decoded[:, j : j + 1]))


def check_refuses_uneven_rows(fmt, columns):
    with pytest.raises(FormatError, match=f"multiple of {fmt.block}.*rows of {columns}"):
        fmt.block_of(columns)
    with pytest.raises(FormatError):
        fmt.nbytes((4, columns))


def check_asks_for_prepare(fmt):
    with pytest.raises(FormatError, match="prepare"):
        fmt.fit(np.ones((2, fmt.block or 8), np.float32))
