"""Rows quantized in one native pass get the bytes that fit, round and pack specify, from every type of source."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fewbits.errors import NotFiniteError
from fewbits.formats import get_format
from fewbits.formats.format import fitted
from fewbits.formats.minifloat import bfloat16_bits, round_bfloat16
from fewbits.formats.stored_rows import as_float32
from format_properties import hard_weights, heavy_tailed
from gguf_formats import FORMATS
from instruction_sets import printed_on

few = settings(max_examples=25, deadline=None, derandomize=True)
formats = pytest.mark.parametrize("name", FORMATS)
any_float32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


def specified(fmt, rows, importance=None):
    """The bytes by the specification: NumPy's search, rounding and packing."""
    weight = as_float32(rows)
    blocks = weight.reshape(-1, fmt.block)
    if importance is not None:
        importance = np.broadcast_to(importance, weight.shape).reshape(-1, fmt.block)
    params = fmt.specified_fit(blocks, importance)
    return fmt.pack(fmt.round(blocks, params).reshape(weight.shape), params)["data"]


def assert_as_specified(fmt, rows, importance=None):
    found = fmt.quantize_rows(rows, importance)["data"]

    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, specified(fmt, rows, importance))


def stored(weight, kind):
    """Float32 numbers as a source of another type holds them, within its range."""
    if kind == "bfloat16":
        return bfloat16_bits(round_bfloat16(np.clip(weight, -3.38e38, 3.38e38)))
    return np.clip(weight, -65504, 65504).astype(np.float16) if kind == "float16" else weight


@formats
@few
@given(data=st.data())
def test_any_finite_float32(name, data):
    fmt = FORMATS[name]
    columns = fmt.block * (3 if fmt.block == 32 else 1)
    rows = data.draw(arrays(np.float32, (2, columns), elements=any_float32))
    importance = data.draw(st.none() | arrays(np.float32, columns, elements=st.floats(0, 2.0**100, width=32)))

    assert_as_specified(fmt, rows, importance)


@formats
@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
@few
@given(data=st.data())
def test_any_finite_number_of_16_bits(name, kind, data):
    fmt = FORMATS[name]
    bits = data.draw(arrays(np.uint16, (2, fmt.block), elements=st.integers(0, 2**16 - 1)))
    exponent = np.uint16(0x7F80 if kind == "bfloat16" else 0x7C00)
    bits[bits & exponent == exponent] &= ~exponent  # no infinity, no NaN

    assert_as_specified(fmt, bits if kind == "bfloat16" else bits.view(np.float16))


@formats
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("weights", hard_weights(256))
def test_hard_weights(name, kind, weights):
    assert_as_specified(FORMATS[name], stored(hard_weights(256)[weights], kind))


@formats
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("importance", [None, "of columns", "of rows"])
def test_usual_weights(name, kind, importance):
    # Rows of three blocks: no multiple of what any instruction set takes at once.
    fmt = FORMATS[name]
    rows = stored(heavy_tailed(7, 3 * fmt.block), kind)
    rng = np.random.default_rng(1)
    shape = {"of columns": rows.shape[1:], "of rows": rows.shape, None: ()}[importance]
    shares = np.exp(rng.normal(0, 1.5, shape)).astype(np.float32) if importance else None

    assert_as_specified(fmt, rows, shares)


@formats
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(name, kind, number):
    fmt = FORMATS[name]
    rows = heavy_tailed(5, fmt.block)
    rows[4, fmt.block - 1] = number
    rows = {"float32": rows, "float16": rows.astype(np.float16)}.get(kind)
    if rows is None:
        wide = heavy_tailed(5, fmt.block)
        wide[4, fmt.block - 1] = number
        rows = (wide.view(np.uint32) >> np.uint32(16)).astype(np.uint16)

    with pytest.raises(NotFiniteError, match=name):
        fmt.quantize_rows(rows)


@pytest.mark.parametrize("name", ["INT4_G64", "INT8_CHANNEL_SYM", "MXFP4_PACKED", "NF4", "FP8_E4M3_CHANNEL"])
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_other_formats_fit_round_and_pack(name, kind):
    fmt = get_format(name)
    rows = stored(heavy_tailed(32, 128), kind)

    found, expected = fmt.quantize_rows(rows), fitted(fmt, as_float32(rows)).pack()

    assert found.keys() == expected.keys()
    for part, array in expected.items():
        np.testing.assert_array_equal(found[part], array)


SCRIPT = """
import sys, hashlib
sys.path.insert(0, {tests!r})
import numpy as np
from test_quantize_rows import FORMATS, hard_weights, heavy_tailed, stored
from fewbits import _native
digest = hashlib.sha256()
for fmt in FORMATS.values():
    usual = heavy_tailed(7, 3 * fmt.block)
    importance = np.exp(np.random.default_rng(1).normal(0, 1.5, usual.shape[1])).astype(np.float32)
    for kind in ("float32", "bfloat16", "float16"):
        for weight in hard_weights(256).values():
            digest.update(fmt.quantize_rows(stored(weight, kind))["data"].tobytes())
        for shares in (None, importance):
            digest.update(fmt.quantize_rows(stored(usual, kind), shares)["data"].tobytes())
print(_native.isa(), digest.hexdigest())
"""


@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_every_instruction_set_gives_the_same_bytes(isa):
    script = SCRIPT.format(tests=str(Path(__file__).parent))

    assert printed_on(isa, script) == printed_on(None, script)
