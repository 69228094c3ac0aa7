"""The engine's matrix products: every type of a GGUF file, on every instruction set of this processor.

Weights are what the format decodes to, activations are rounded to 8 bits in blocks of 32 columns, sums are float64:
kernels differ from that by the rounding of float32. Formats with super-blocks have integers up to the end of one, which
`super_products` specifies.
"""

import numpy as np
import pytest

from fewbits import _native
from fewbits.checkpoint.gguf_constants import GGML_TYPES
from fewbits.formats import get_format
from fewbits.formats.format import QTensor
from gguf_formats import FORMATS

FLOATS = {"F32": np.float32, "F16": np.float16, "BF16": None}
COUNTS = (1, 2, 3, 8, 17)


def rounded(x):
    """Activations as the kernels see them, and the scale of each 32."""
    blocks = x.reshape(len(x), -1, 32)
    peak = np.abs(blocks).max(axis=2, keepdims=True)
    with np.errstate(divide="ignore"):
        inverse = np.where(peak > 0, np.float32(127) / peak, np.float32(0))
    return (np.rint(blocks * inverse) * np.float64(peak / np.float32(127))).reshape(x.shape)


# By how many bits dot products of a group's codes and 8-bit activations are shifted down to fill 16 bits.
DOWN = {"Q6_K": 1, "Q5_K": 2, "Q4_K": 1, "IQ4_XS": 4, "Q3_K": -2, "Q2_K": -2}


def times_share(numbers, share):
    """numbers * share / 2^15, to the nearest."""
    return (numbers * share + 0x4000) >> 15


def super_products(fmt, data, columns, x):
    """Products with a matrix of super-blocks as native/kernels/matmul_supers.inc describes them, float64 [N, rows]."""
    shape = len(data), columns
    codes, params = fmt.unpack({"data": data}, shape)
    levels = fmt.grid.decode(codes).astype(np.int64).reshape(len(data), -1, 256 // fmt.group, fmt.group)
    numbers, _, shares, super_scales = shared(x)
    numbers = numbers.reshape(len(x), -1, 256 // fmt.group, fmt.group)
    shares = np.repeat(shares, 32 // fmt.group, axis=2)[:, None]
    dots = np.einsum("rsgi,nsgi->nrsg", levels, numbers)
    down = DOWN[fmt.name]
    # What lies in the middle goes up in the first of two groups, down in the second.
    second = np.arange(256 // fmt.group) % 2
    dots = dots << -down if down < 0 else (dots + (1 << down >> 1) - second) >> down
    assert np.abs(dots).max() < 1 << 15
    of_super = len(data), columns // 256
    sums = (times_share(dots, shares) * params.sub.astype(np.int64).reshape(*of_super, -1)).sum(axis=3)
    value = sums * 2.0**down * params.d.astype(np.float64).reshape(of_super)
    if hasattr(params, "low"):
        raised = 512 // fmt.group * 0.5
        low = times_share((numbers.sum(axis=3)[:, None] * raised).astype(np.int64), shares)
        low = (low * params.low.astype(np.int64).reshape(*of_super, -1)).sum(axis=3)
        value = value - low / raised * params.dmin.astype(np.float64).reshape(of_super)
    return np.einsum("nrs,ns->nr", value, super_scales.astype(np.float64))


def shared(x):
    """Activations of super-blocks: codes [N, columns], scales [N, S, 8], shares of it, super-blocks' scales [N, S]."""
    blocks = x.reshape(len(x), -1, 8, 32)
    peak = np.abs(blocks).max(axis=3)
    with np.errstate(divide="ignore"):
        inverse = np.where(peak > 0, np.float32(127) / peak, np.float32(0))
    codes = np.rint(blocks * inverse[..., None]).astype(np.int64).reshape(x.shape)
    scales = peak / np.float32(127)
    largest = scales.max(axis=2)
    with np.errstate(divide="ignore"):
        inverse = np.where(largest > 0, np.float32(32767) / largest, np.float32(0))
    shares = (inverse[..., None] * scales + np.float32(0.5)).astype(np.int64)
    return codes, scales, shares, largest * np.float32(32768 / 32767)


def expected_products(fmt, data, weight, x):
    if fmt.name in DOWN:
        return super_products(fmt, data, weight.shape[1], x)
    return rounded(x).astype(np.float64) @ weight.T.astype(np.float64)


def multiply(number, data, columns, x, rows, isa):
    out = np.full((len(x), rows), np.nan, np.float32)
    _native.PackedMatrix(number, data, columns).multiply(x, out, isa)
    return out


def assert_close(found, weight, x, expected=None):
    # Sums are off by half a unit in the last place of what was added so far, which of formats with minima, and of codes
    # with an offset, is more than the weights themselves.
    size = np.abs(x.astype(np.float64)) @ np.abs(weight.T.astype(np.float64))
    if expected is None:
        expected = x.astype(np.float64) @ weight.T.astype(np.float64)
    assert found.shape == expected.shape
    error = np.abs(found - expected)
    worst = (error / (size + 1e-30)).max()
    assert (error <= size * 2.0**-19 + 1e-30).all(), f"{worst:.3g} of the sum of magnitudes"


def random_blocks(fmt, rows, columns, seed):
    """Packed blocks whose codes take all values, decoded weights float32 [rows, columns]."""
    rng = np.random.default_rng(seed)
    weight = (rng.standard_t(4, (rows, columns)) * 0.02).astype(np.float32)
    weight[rows // 2] = 0
    blocks = weight.reshape(-1, fmt.block)
    params = fmt.fit(blocks)
    codes = fmt.round(blocks, params)
    codes[len(codes) // 3] = codes.max()
    codes[len(codes) // 3 + 1] = 0
    data = fmt.pack(codes.reshape(rows, columns), params)["data"]
    return data, decoded(fmt, data, columns)


def decoded(fmt, data, columns):
    shape = len(data), columns
    return QTensor(fmt, shape, *fmt.unpack({"data": data}, shape)).dequantize()


def activations(count, columns, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, columns)).astype(np.float32)
    x[0, :32] = 0
    x[-1, 32:64] = np.where(rng.random(32) < 0.5, 1, -1) * 3e-3
    x[count // 2, -32:] *= 1e4
    return x


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("isa", _native.packed_isas())
@pytest.mark.parametrize("name", FORMATS)
def test_products_of_every_type(name, isa, count):
    fmt = get_format(name)
    rows, columns = 41, 1024 if fmt.block == 256 else 608  # 19 slabs: the last run has fewer than others
    data, weight = random_blocks(fmt, rows, columns, seed=count)
    x = activations(count, columns, seed=count)

    found = multiply(GGML_TYPES[name].number, data, columns, x, rows, isa)

    assert_close(found, weight, rounded(x), expected_products(fmt, data, weight, x))


@pytest.mark.parametrize("name", DOWN)
def test_integers_of_super_blocks_cost_little_beside_rounding_the_activations(name):
    fmt = get_format(name)
    data, weight = random_blocks(fmt, 64, 1024, seed=0)
    x = np.random.default_rng(1).standard_t(4, (16, 1024)).astype(np.float32)
    weight = weight.astype(np.float64)

    found = super_products(fmt, data, 1024, x)

    by_activations = (rounded(x) - x) @ weight.T
    assert (found - rounded(x) @ weight.T).std() < 0.3 * by_activations.std()


@pytest.mark.parametrize("isa", _native.packed_isas())
@pytest.mark.parametrize("name", FORMATS)
def test_nothing_overflows_at_the_ends_of_the_ranges(name, isa):
    fmt = get_format(name)
    rng = np.random.default_rng(0)
    rows, columns = 48, 512
    # Every byte of the scales and codes at an end of its range, or anything; float16 numbers stay small.
    data = rng.integers(0, 256, (rows * columns // fmt.block, fmt.block_bytes), np.uint8)
    data[: len(data) // 3] = 0xFF
    data[len(data) // 3 : len(data) // 2] = 0x00
    data[-8:] = 0x80
    for start in half_offsets(name):
        halves = rng.uniform(0.5, 1, len(data)).astype("<f2")
        data[:, start : start + 2] = halves[:, None].view(np.uint8)
    if name == "MXFP4":
        data[:, 0] = rng.integers(110, 140, len(data))
    data = data.reshape(rows, -1)
    weight = decoded(fmt, data, columns)
    signs = np.where(rng.random((5, columns)) < 0.5, np.float32(1), np.float32(-1))
    x = np.concatenate([signs, np.ones((2, columns), np.float32), -np.ones((1, columns), np.float32)]) * 127
    x = x.astype(np.float32)

    found = multiply(GGML_TYPES[name].number, data, columns, x, rows, isa)

    assert_close(found, weight, rounded(x), expected_products(fmt, data, weight, x))


def half_offsets(name):
    """Where the float16 numbers of a block lie."""
    places = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q2_K": (80, 82), "MXFP4": ()}
    return places.get(name, {"Q3_K": (108,), "Q6_K": (208,)}.get(name, (0,)))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("isa", _native.packed_isas())
@pytest.mark.parametrize("name", FLOATS)
def test_products_of_floats(name, isa, count):
    rows, columns = 37, 100
    rng = np.random.default_rng(count)
    weight = rng.standard_normal((rows, columns)).astype(np.float32)
    weight[3, 3] = 1e-7
    if name == "BF16":
        data = (weight.view(np.uint32) >> 16).astype(np.uint16)
        weight = (data.astype(np.uint32) << 16).view(np.float32)
    else:
        data = weight.astype(FLOATS[name])
        weight = data.astype(np.float32)
    x = rng.standard_normal((count, columns)).astype(np.float32)

    found = multiply(GGML_TYPES[name].number, data.view(np.uint8), columns, x, rows, isa)

    assert_close(found, weight, x)


@pytest.mark.parametrize("isa", _native.packed_isas())
@pytest.mark.parametrize("name", [*FORMATS, *FLOATS])
def test_a_vector_gets_the_same_numbers_among_any_others(name, isa):
    kind, columns = GGML_TYPES[name], 512
    rng = np.random.default_rng(1)
    data = rng.integers(0, 60, (40, kind.row_bytes(columns))).astype(np.uint8)  # no float16 or float32 is NaN
    x = rng.standard_normal((37, columns)).astype(np.float32)

    together = multiply(kind.number, data, columns, x, 40, isa)

    for count in (1, 2, 3, 5, 8, 9, 16):
        some = multiply(kind.number, data, columns, np.ascontiguousarray(x[5 : 5 + count]), 40, isa)
        assert np.array_equal(some, together[5 : 5 + count])


def test_the_instruction_set_has_to_exist():
    matrix = _native.PackedMatrix(0, np.zeros((1, 4), np.uint8), 1)
    with pytest.raises(ValueError, match="instruction set"):
        matrix.multiply(np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float32), "mmx")


def test_a_type_that_the_engine_does_not_know_is_refused():
    with pytest.raises(ValueError, match="shapes"):
        _native.PackedMatrix(99, np.zeros((1, 4), np.uint8), 1)
