"""Oracle A: bytes mean what the gguf package says they mean, bit for bit."""

from __future__ import annotations

import gguf
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ggml_oracle
from fewbits.errors import FormatError
from fewbits.formats.format import QTensor
from fewbits.formats.gguf_mxfp4 import LARGEST_EXPONENT
from gguf_formats import FORMATS

# Where the float16 numbers of a block are.
HALVES = {
    "Q8_0": [0],
    "Q6_K": [208],
    "Q5_K": [0, 2],
    "Q4_K": [0, 2],
    "Q3_K": [108],
    "Q2_K": [80, 82],
    "Q5_1": [0, 2],
    "Q5_0": [0],
    "Q4_1": [0, 2],
    "Q4_0": [0],
    "IQ4_NL": [0],
    "IQ4_XS": [0],
    "MXFP4": [],
}

few = settings(max_examples=50, deadline=None, derandomize=True)
formats = pytest.mark.parametrize("name", FORMATS)


def with_finite_scales(name: str, blocks: np.ndarray) -> np.ndarray:
    """Random bytes, but with the exponents of the float16 numbers below infinity's."""
    for at in HALVES[name]:
        high = blocks[:, at + 1]
        high[(high & 0x7C) == 0x7C] ^= 0x40
    if name == "MXFP4":
        blocks[:, 0] = np.minimum(blocks[:, 0], LARGEST_EXPONENT)
    return blocks


def assert_reads_like_gguf(name: str, data: np.ndarray, columns: int) -> None:
    fmt = FORMATS[name]
    codes, params = fmt.unpack({"data": data}, (len(data), columns))

    assert codes.dtype == np.uint8
    assert codes.shape == (len(data), columns)
    ours = fmt.decode(codes.reshape(-1, fmt.block), params).reshape(len(data), columns)
    theirs = ggml_oracle.dequantize(name, data)
    np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))
    np.testing.assert_array_equal(fmt.pack(codes, params)["data"], data)


def test_all_formats_are_here() -> None:
    assert sorted(FORMATS) == sorted(HALVES)


@formats
def test_size_table_is_ggufs(name: str) -> None:
    fmt = FORMATS[name]
    block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]

    assert fmt.block == block
    assert fmt.nbytes((6, 4 * block)) == 6 * 4 * block_bytes
    assert fmt.bits * block == 8 * block_bytes
    assert fmt.bits_per_weight((3, block)) == float(fmt.bits)


@formats
def test_random_bytes(name: str) -> None:
    fmt = FORMATS[name]
    width = fmt.nbytes((1, fmt.block))
    raw = np.random.default_rng(1).integers(0, 256, (400, width), np.uint8)
    data = with_finite_scales(name, raw).reshape(100, 4 * width)

    assert_reads_like_gguf(name, data, 4 * fmt.block)


@formats
@few
@given(data=st.data())
def test_any_bytes(name: str, data: st.DataObject) -> None:
    fmt = FORMATS[name]
    width = fmt.nbytes((1, fmt.block))
    raw = data.draw(hnp.arrays(np.uint8, (3, width)))

    assert_reads_like_gguf(name, with_finite_scales(name, raw), fmt.block)


@formats
def test_packed_output(name: str) -> None:
    fmt = FORMATS[name]
    weight = np.random.default_rng(2).standard_t(4, (8, 1024)).astype(np.float32)
    params = fmt.fit(weight.reshape(-1, fmt.block))
    codes = fmt.round(weight.reshape(-1, fmt.block), params).reshape(weight.shape)
    tensor = QTensor(fmt, (8, 1024), codes, params)
    data = tensor.pack()["data"]

    assert data.nbytes == fmt.nbytes((8, 1024))
    np.testing.assert_array_equal(
        tensor.dequantize().view(np.uint32), ggml_oracle.dequantize(name, data).view(np.uint32)
    )
    assert_reads_like_gguf(name, data, 1024)
    again, params_again = fmt.unpack({"data": data}, (8, 1024))
    np.testing.assert_array_equal(again, codes)
    for field, value in vars(params).items():
        np.testing.assert_array_equal(getattr(params_again, field), value)


@pytest.mark.parametrize("name", ["Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "MXFP4"])
def test_bytes_written_by_the_gguf_package(name: str) -> None:
    weight = np.random.default_rng(3).standard_normal((16, 512)).astype(np.float32)
    data = gguf.quants.quantize(weight, gguf.GGMLQuantizationType[name])

    assert_reads_like_gguf(name, data, 512)


@formats
def test_bytes_written_by_ggml(name: str) -> None:
    weight = np.random.default_rng(4).standard_normal((16, 512)).astype(np.float32)

    assert_reads_like_gguf(name, ggml_oracle.quantize(name, weight), 512)


@formats
def test_fallbacks_end_in_f16(name: str) -> None:
    fmt = FORMATS[name]
    ladder = []
    while fmt.fallback in FORMATS:
        assert FORMATS[fmt.fallback].block < fmt.block
        fmt = FORMATS[fmt.fallback]
        ladder.append(fmt.name)

    assert fmt.fallback == "F16"
    expected = {
        "Q6_K": "Q8_0",
        "Q5_K": "Q5_1",
        "Q4_K": "Q5_0",
        "Q3_K": "IQ4_NL",
        "Q2_K": "IQ4_NL",
        "IQ4_XS": "IQ4_NL",
    }
    assert ladder == ([expected[name]] if name in expected else [])


@formats
def test_rows_that_do_not_divide_are_refused(name: str) -> None:
    fmt = FORMATS[name]
    with pytest.raises(FormatError, match=f"multiple of {fmt.block}"):
        fmt.block_of(fmt.block + 1)
    with pytest.raises(FormatError, match="multiple"):
        fmt.nbytes((4, fmt.block // 2))
    with pytest.raises(FormatError, match="fits blocks"):
        fmt.fit(np.zeros((2, fmt.block + 1), np.float32))


@formats
def test_wrong_number_of_bytes_is_refused(name: str) -> None:
    fmt = FORMATS[name]
    width = fmt.nbytes((1, fmt.block))
    with pytest.raises(FormatError, match="don't fit"):
        fmt.unpack({"data": np.zeros((2, width + 1), np.uint8)}, (2, fmt.block))
    with pytest.raises(FormatError, match="don't fit"):
        fmt.unpack({"data": np.zeros((2, width), np.int8)}, (2, fmt.block))
