"""Properties of fit, round and decode of the GGUF formats: finite, bounded, and the same in any chunks."""

from __future__ import annotations

import warnings

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_formats import FORMATS

# Largest error of any weight over the largest weight of its block, where no importance says otherwise.
# At least half a step of the grid; the search may clip the largest weight by more than that.
ERROR_LIMITS = {
    "Q8_0": 0.03,
    "Q6_K": 0.1,
    "Q5_K": 0.1,
    "Q4_K": 0.15,
    "Q3_K": 0.4,
    "Q2_K": 0.5,
    "Q5_1": 0.08,
    "Q5_0": 0.15,
    "Q4_1": 0.15,
    "Q4_0": 0.3,
    "IQ4_NL": 0.3,
    "IQ4_XS": 0.3,
    "MXFP4": 0.3,
}

few = settings(max_examples=50, deadline=None, derandomize=True)
formats = pytest.mark.parametrize("name", FORMATS)
any_float = st.floats(width=32, allow_nan=False, allow_infinity=False)


def quantized(name: str, weight: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    fmt = FORMATS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        params = fmt.fit(weight, importance)
        values = fmt.decode(fmt.round(weight, params), params)
    assert values.dtype == np.float32
    assert values.shape == weight.shape
    assert np.isfinite(values).all()
    return values


def heavy_tailed(blocks: int, columns: int, seed: int = 0) -> np.ndarray:
    return (0.02 * np.random.default_rng(seed).standard_t(4, (blocks, columns))).astype(np.float32)


@formats
@few
@given(data=st.data())
def test_any_finite_input_stays_finite(name: str, data: st.DataObject) -> None:
    shape = (2, FORMATS[name].block)
    weight = data.draw(hnp.arrays(np.float32, shape, elements=any_float))
    importance = data.draw(
        st.none() | hnp.arrays(np.float32, shape, elements=st.floats(0, 2.0**100, width=32))
    )

    quantized(name, weight, importance)


@formats
def test_awkward_blocks(name: str) -> None:
    block = FORMATS[name].block
    rows = {
        "zeros": np.zeros(block),
        "minus zeros": -np.zeros(block),
        "outlier": np.r_[1e38, np.ones(block - 1)],
        "outlier below": np.r_[-1e38, np.ones(block - 1)],
        "largest": np.full(block, np.finfo(np.float32).max),
        "both ends": np.r_[np.full(block // 2, 3e38), np.full(block // 2, -3e38)],
        "denormals": np.full(block, 1e-42),
        "half denormals": np.linspace(-3e-7, 3e-7, block),
        "too small for float16": np.linspace(-1e-12, 1e-12, block),
        "above float16": np.linspace(-1e6, 1e6, block),
        "constant": np.full(block, 0.7),
        "constant below": np.full(block, -0.7),
        "far from zero": 1000 + np.linspace(0, 1, block),
    }
    weight = np.array(list(rows.values()), np.float32)
    values = dict(zip(rows, quantized(name, weight), strict=True))

    assert not values["zeros"].any()
    assert not values["minus zeros"].any()
    if name != "MXFP4":
        assert np.abs(values["too small for float16"]).max() <= 2.0**-24
    assert values["outlier"][0] == values["outlier"].max() > 1e4
    assert values["outlier below"][0] == values["outlier below"].min() < -1e4


@formats
def test_one_weight_alone_is_kept(name: str) -> None:
    block = FORMATS[name].block
    weight = np.zeros((2 * block, block), np.float32)
    np.fill_diagonal(weight[:block], 0.5)
    np.fill_diagonal(weight[block:], -0.5)
    error = np.abs(quantized(name, weight) - weight)

    assert error.max() <= 0.02  # IQ4 has no zero: its level nearest to zero is 1/127 of the outermost


@formats
def test_error_is_bounded_for_ordinary_weights(name: str) -> None:
    weight = heavy_tailed(300, FORMATS[name].block)
    error = np.abs(quantized(name, weight) - weight).max(axis=1)

    assert (error / np.abs(weight).max(axis=1)).max() <= ERROR_LIMITS[name]


@formats
@pytest.mark.parametrize("weighted", [False, True])
def test_chunks_do_not_matter(name: str, weighted: bool) -> None:
    fmt = FORMATS[name]
    weight = heavy_tailed(24, fmt.block, seed=5)
    weight[3], weight[5] = 0, 1e30
    importance = np.exp(np.random.default_rng(6).standard_normal(weight.shape)).astype(np.float32)
    of = importance if weighted else None
    together = fmt.fit(weight, of)
    codes = fmt.round(weight, together)
    for rows in (1, 2, 7):
        pieces = []
        for start in range(0, len(weight), rows):
            part = slice(start, start + rows)
            params = fmt.fit(weight[part], None if of is None else of[part])
            pieces.append(fmt.pack(fmt.round(weight[part], params), params)["data"])
        np.testing.assert_array_equal(np.concatenate(pieces), fmt.pack(codes, together)["data"])


@formats
def test_more_blocks_than_a_tile(name: str) -> None:
    fmt = FORMATS[name]
    weight = heavy_tailed(65536 // fmt.block + 3, fmt.block, seed=7)
    importance = np.linspace(0.1, 3, fmt.block, dtype=np.float32)
    together = fmt.fit(weight, importance)
    last = fmt.fit(weight[-1:], importance)

    for field, value in vars(together).items():
        np.testing.assert_array_equal(value[-1:], getattr(last, field))


@formats
def test_no_blocks(name: str) -> None:
    fmt = FORMATS[name]
    none = np.zeros((0, fmt.block), np.float32)
    params = fmt.fit(none)

    assert fmt.pack(fmt.round(none, params), params)["data"].size == 0


@formats
def test_columns_one_by_one(name: str) -> None:
    fmt = FORMATS[name]
    weight = heavy_tailed(5, fmt.block, seed=8)
    params = fmt.fit(weight)
    codes = fmt.round(weight, params)
    values = fmt.decode(codes, params)
    for column in range(fmt.block):
        one = slice(column, column + 1)
        np.testing.assert_array_equal(fmt.round(weight[:, one], params, column), codes[:, one])
        np.testing.assert_array_equal(fmt.decode(codes[:, one], params, column), values[:, one])
    some = slice(7, 29)  # neither starts nor ends with a group
    np.testing.assert_array_equal(fmt.round(weight[:, some], params, 7), codes[:, some])
    np.testing.assert_array_equal(fmt.decode(codes[:, some], params, 7), values[:, some])


@formats
def test_params_of_some_blocks(name: str) -> None:
    fmt = FORMATS[name]
    weight = heavy_tailed(6, fmt.block, seed=9)
    params = fmt.fit(weight)
    codes = fmt.round(weight, params)

    np.testing.assert_array_equal(fmt.round(weight[2:4], params.take(slice(2, 4))), codes[2:4])


@formats
def test_codes_are_the_nearest(name: str) -> None:
    fmt = FORMATS[name]
    weight = heavy_tailed(4, fmt.block, seed=10)
    params = fmt.fit(weight)
    chosen = np.abs(fmt.decode(fmt.round(weight, params), params) - weight)
    highest = {"Q8_0": 255, "Q6_K": 63, "Q5_K": 31, "Q5_0": 31, "Q5_1": 31, "Q3_K": 7, "Q2_K": 3}.get(
        name, 15
    )
    lowest = 1 if name == "Q8_0" else 0
    for code in range(lowest, highest + 1):
        other = np.abs(fmt.decode(np.full(weight.shape, code, np.uint8), params) - weight)
        assert (chosen <= other + 1e-6 * np.abs(weight).max()).all()


@formats
def test_no_importance_at_all_is_uniform_importance(name: str) -> None:
    fmt = FORMATS[name]
    weight = heavy_tailed(3, fmt.block, seed=11)
    importance = np.ones_like(weight)
    importance[1] = 0
    expected = fmt.fit(weight, np.ones_like(weight))

    for field, value in vars(fmt.fit(weight, importance)).items():
        np.testing.assert_array_equal(value, getattr(expected, field))


@formats
def test_unit_of_importance_does_not_matter(name: str) -> None:
    fmt = FORMATS[name]
    weight = heavy_tailed(4, fmt.block, seed=12)
    importance = np.exp(np.random.default_rng(13).standard_normal(fmt.block)).astype(np.float32)
    expected = fmt.fit(weight, importance)

    for unit in (2.0**-90, 2.0**90):
        for field, value in vars(fmt.fit(weight, importance * np.float32(unit))).items():
            np.testing.assert_array_equal(value, getattr(expected, field))
