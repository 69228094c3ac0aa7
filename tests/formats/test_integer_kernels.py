"""The native fits of integer grids find what their specifications find, bit for bit, on every instruction set."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fewbits import _native
from fewbits.formats.graph_integer import _BFLOAT16_IN_FLOAT16
from fewbits.formats.integer_grid import IntegerGrid
from fewbits.formats.scale_search import dot, specified_dot
from fewbits.formats.scale_type import BFLOAT16, FLOAT16, FLOAT32
from format_properties import hard_weights, heavy_tailed, same_bits
from instruction_sets import printed_on

SCALES = {"BF16": BFLOAT16, "F32": FLOAT32, "F16": FLOAT16, "BF16 in F16": _BFLOAT16_IN_FLOAT16}
any_float32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
few = settings(max_examples=60, deadline=None, derandomize=True)


class Grid(IntegerGrid):
    """Integers that are never packed."""

    pack = unpack = None


Grid.__abstractmethods__ = frozenset()


def make(width, scales, symmetric, block=32):
    return Grid(width, "GROUP", block, SCALES[scales], symmetric=symmetric)


def assert_as_specified(fmt, weight, importance=None):
    found, expected = fmt.fit(weight, importance), fmt.specified_fit(weight, importance)

    same_bits(found.scale, expected.scale)
    np.testing.assert_array_equal(found.zero, expected.zero)
    assert found.zero.dtype == np.uint8


def importances(shape):
    rng = np.random.default_rng(3)
    some = np.exp(rng.normal(0, 1.5, shape)).astype(np.float32)
    some[0] = 0
    return {"none": None, "of columns": np.ascontiguousarray(some[1]), "of weights": some}


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("width", range(2, 9))
@pytest.mark.parametrize("columns", [16, 64, 128, 576])
def test_usual_weights(width, scales, symmetric, columns):
    weight = heavy_tailed(37, columns)
    for importance in importances(weight.shape).values():
        assert_as_specified(make(width, scales, symmetric, columns), weight, importance)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("width", [2, 4, 8])
@pytest.mark.parametrize("weights", hard_weights(32))
def test_hard_weights(width, scales, symmetric, weights):
    assert_as_specified(make(width, scales, symmetric), hard_weights(32)[weights])


@few
@given(
    st.integers(2, 8),
    st.sampled_from(sorted(SCALES)),
    st.booleans(),
    st.sampled_from([16, 32, 40]).flatmap(
        lambda columns: arrays(np.float32, (3, columns), elements=any_float32)
    ),
    st.booleans(),
)
def test_any_finite_weights(width, scales, symmetric, weight, weighted):
    importance = importances(weight.shape)["of weights"] if weighted else None

    assert_as_specified(make(width, scales, symmetric, weight.shape[1]), weight, importance)


@pytest.mark.parametrize("columns", [1, 16, 31, 32, 33, 96, 1000])
def test_inner_products(columns):
    left, right = heavy_tailed(9, columns), heavy_tailed(9, columns, seed=1)

    same_bits(dot(left, right), specified_dot(left, right))


def test_arrays_that_dont_fit_are_refused():
    with pytest.raises(ValueError, match="shapes"):
        _native.row_dots(np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32), np.zeros(2, np.float32))
    scales = {
        "significant": 24,
        "smallest": 1.0,
        "largest": 1.0,
        "signed_scales": False,
        "rounds_products": False,
    }
    rest = {"symmetric": True, "shares": np.ones(1, np.float32), "cuts_ends": False, **scales}
    for width, blocks in ((9, 2), (4, 3)):
        found = {"scale": np.empty(blocks, np.float32), "zero": np.empty(blocks, np.uint8)}
        with pytest.raises(ValueError, match="shapes"):
            _native.fit_integers(np.zeros((2, 32), np.float32), None, width=width, **rest, **found)


SCRIPT = """
import sys, hashlib
sys.path.insert(0, {tests!r})
from test_integer_kernels import SCALES, dot, hard_weights, heavy_tailed, importances, make
from fewbits import _native
digest = hashlib.sha256()
for width in range(2, 9):
    for scales in SCALES:
        for symmetric in (True, False):
            fmt = make(width, scales, symmetric)
            usual = heavy_tailed(37, 32)
            for weight, importance in (
                *((weight, None) for weight in hard_weights(32).values()),
                *((usual, importance) for importance in importances(usual.shape).values()),
            ):
                params = fmt.fit(weight, importance)
                digest.update(params.scale.tobytes() + params.zero.tobytes())
digest.update(dot(heavy_tailed(9, 1000), heavy_tailed(9, 1000, seed=1)).tobytes())
print(_native.isa(), digest.hexdigest())
"""


@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_every_instruction_set_finds_the_same(isa):
    script = SCRIPT.format(tests=str(Path(__file__).parent))

    assert printed_on(isa, script) == printed_on(None, script)
