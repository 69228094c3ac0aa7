"""The kernels of the searches find what their specifications find, bit for bit, on every instruction set."""

from pathlib import Path

import numpy as np
import pytest

from fewbits import _native
from fewbits.formats import get_format
from instruction_sets import printed_on

FORMATS = [
    *("Q8_0", "Q5_0", "Q4_0", "Q5_1", "Q4_1", "IQ4_NL"),
    *("Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K", "IQ4_XS", "MXFP4"),
]


def awkward_blocks(block, blocks=37, seed=0):
    """float32 [blocks, block]: heavy tails, and blocks that are empty, tiny, huge, one-sided or constant."""
    rng = np.random.default_rng(seed)
    weight = (rng.standard_t(4, (blocks, block)) * 0.02).astype(np.float32)
    weight[0] = 0
    weight[1], weight[1, 3] = 0, 1e30
    weight[2] = 1e-12
    weight[3], weight[4] = np.abs(weight[3]), -np.abs(weight[4])
    weight[5, 5] = 3e3
    weight[6, : block // 2] = 0
    weight[7] = 0.25
    weight[8] *= 1e-7
    return weight


def importances(shape, seed=1):
    rng = np.random.default_rng(seed)
    return {
        "none": None,
        "of columns": np.exp(rng.normal(0, 1, shape[1])).astype(np.float32),
        "of weights": np.exp(rng.normal(0, 1.5, shape)).astype(np.float32),
        "zero": np.zeros(shape[1], np.float32),
    }


def assert_same_bytes(found, expected):
    assert type(found) is type(expected)
    for name, array in vars(expected).items():
        ours = getattr(found, name)
        assert (ours.dtype, ours.shape) == (array.dtype, array.shape)
        assert ours.tobytes() == array.tobytes(), name


@pytest.mark.parametrize("kind", ["none", "of columns", "of weights", "zero"])
@pytest.mark.parametrize("name", FORMATS)
def test_finds_what_the_specification_finds(name, kind):
    fmt = get_format(name)
    weight = awkward_blocks(fmt.block)
    importance = importances(weight.shape)[kind]

    assert_same_bytes(fmt.fit(weight, importance), fmt.specified_fit(weight, importance))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K", "IQ4_XS"])
def test_finds_what_the_specification_finds_for_a_group(name, weighted):
    fmt = get_format(name)
    weight = awkward_blocks(fmt.block)
    params = fmt.fit(weight)
    columns = np.ascontiguousarray(weight[:, fmt.group : 2 * fmt.group] + np.float32(0.003))
    importance = (
        np.exp(np.random.default_rng(2).normal(size=fmt.group)).astype(np.float32) if weighted else None
    )

    found = fmt.fit_group(columns, params, 1, importance)

    assert_same_bytes(found, fmt.specified_fit_group(columns, params, 1, importance))


SCRIPT = """
import sys, hashlib
sys.path.insert(0, {tests!r})
from test_gguf_kernels import FORMATS, awkward_blocks, importances
from fewbits import _native
from fewbits.formats import get_format
digest = hashlib.sha256()
for name in FORMATS:
    fmt = get_format(name)
    weight = awkward_blocks(fmt.block)
    for importance in importances(weight.shape).values():
        params = fmt.fit(weight, importance)
        if fmt.group < fmt.block:
            params = fmt.fit_group(weight[:, :fmt.group], params, 0)
        for array in vars(params).values():
            digest.update(array.tobytes())
print(_native.isa(), digest.hexdigest())
"""


@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_every_instruction_set_finds_the_same(isa):
    script = SCRIPT.format(tests=str(Path(__file__).parent))

    assert printed_on(isa, script) == printed_on(None, script)


def test_arrays_that_dont_fit_are_refused():
    kernel = get_format("Q4_0").kernel(weighted=False)
    weight, halves = np.zeros((2, 32), np.float32), np.empty((1, 2), np.float32)
    none, packed = np.empty((2, 0), np.uint8), np.empty((2, 18), np.uint8)
    kernel.fit(weight, None, halves, none)
    with pytest.raises(ValueError, match="shapes"):
        kernel.fit(weight, None, np.empty((1, 3), np.float32), none)
    with pytest.raises(ValueError, match="shapes"):
        kernel.fit(np.zeros((2, 64), np.float32), None, halves, none)
    with pytest.raises(ValueError, match="shapes"):
        kernel.quantize(weight, np.ones(31, np.float32), packed)
    with pytest.raises(ValueError, match="shapes"):
        kernel.quantize(weight.astype(np.float64), None, packed)
    with pytest.raises(ValueError, match="shapes"):
        kernel.quantize(weight, None, np.empty((2, 17), np.uint8))


def test_descriptions_that_dont_fit_are_refused():
    grid = -8.0, 7.0, 8.0, np.empty(0, np.float32), np.empty(0, np.uint8)
    search = _native.ScaleSearch(-8, [-8.0], 1)
    codes = np.array([[0, 0, 16, 1, 0, 15, 2, 0], [0, 16, 16, 1, 0, 15, 2, 4]], np.int32)
    _native.BlockKernel(32, 32, 1.0, grid, (18, [0], 0, 0, 0, codes), search)
    beyond = codes.copy()
    beyond[1, 6] = 3
    for block, group, layout in (
        (24, 24, (18, [0], 0, 0, 0, codes)),
        (32, 16, (18, [0], 0, 0, 0, codes)),
        (32, 32, (18, [17], 0, 0, 0, codes)),
        (32, 32, (18, [0, 2], 0, 0, 0, codes)),
        (32, 32, (18, [0], 0, 0, 0, beyond)),
    ):
        with pytest.raises(ValueError, match="shapes"):
            _native.BlockKernel(block, group, 1.0, grid, layout, search)
