"""The roundings of key-value caches against the quantizers of llama.cpp and formulas of the other runtimes."""

import ctypes

import numpy as np
import pytest
import torch

import ggml_oracle
from fewbits.errors import EvaluationError
from fewbits.evaluation.kv_cache import StoredScales, named_scheme, scheme_names
from fewbits.evaluation.kv_rounding import (
    AffineGroups,
    BlockType,
    Int4PerTokenHead,
    PerTokenHead,
    Rotated,
    Static,
    UnevenBlockType,
    hadamard,
)


def heads(width=64, seed=0):
    """Heavy-tailed keys [2, 3, 5, width], with a zero token, an outlier and a constant."""
    x = np.random.default_rng(seed).standard_t(3, (2, 3, 5, width)).astype(np.float32)
    x[0, 0, 1] = 0
    x[0, 1, 2, 7] = 300
    x[1, 2, 3] = -1.5
    return torch.from_numpy(x)


@pytest.mark.parametrize(
    "rounding",
    [
        BlockType("q8_0", 8),
        BlockType("q5_1", 5, affine=True),
        BlockType("q5_0", 5),
        BlockType("q4_1", 4, affine=True),
        BlockType("q4_0", 4),
    ],
    ids=lambda rounding: rounding.name,
)
def test_blocks_are_those_of_llama_cpp(rounding):
    x = heads()
    rows = x.reshape(-1, 64).numpy()
    name = rounding.name.upper()

    expected = ggml_oracle.dequantize(name, ggml_oracle.quantize(name, rows))

    # llama.cpp's loops may multiply with a reciprocal that is rounded otherwise: a number on the border then.
    differing = rounding(x).reshape(-1, 64).numpy() != expected
    assert differing.mean() < 0.003
    assert rounding.bits(64) == 8 * ggml_oracle.quantize(name, rows).shape[1] / 64


def test_iq4_nl_is_that_of_llama_cpp_s_cache():
    """The cache is written by the reference quantizer, which looks for no better scale than a file's does."""
    x = heads()
    rows = np.ascontiguousarray(x.reshape(-1, 64).numpy())
    quantize = ggml_oracle._library().quantize_row_iq4_nl_ref
    quantize.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    data = np.empty((len(rows), 36), np.uint8)
    quantize(rows.ctypes.data, data.ctypes.data, rows.size)

    expected = ggml_oracle.dequantize("IQ4_NL", data)

    found = UnevenBlockType()(x).reshape(-1, 64).numpy()
    assert (np.abs(found - expected) > 1e-6 * np.abs(expected)).mean() < 0.003


def test_rotation_leaves_everything_as_it_was_but_spreads_outliers():
    x = heads(width=128)
    nothing = Rotated(Static(torch.float32), whole=True)
    fine = BlockType("q8_0", 8)

    assert torch.allclose(hadamard(64) @ hadamard(64), torch.eye(64), atol=1e-6)
    assert torch.allclose(nothing(x), x, atol=1e-4)
    # Parts of 64 don't mix: the outlier's neighbours beyond them are rounded as without it.
    changed = x.clone()
    changed[0, 1, 2, 7] = 0
    small = Rotated(fine, whole=False)
    assert torch.equal(small(x)[0, 1, 2, 64:], small(changed)[0, 1, 2, 64:])
    assert not torch.equal(
        Rotated(fine, whole=True)(x)[0, 1, 2, 64:], Rotated(fine, whole=True)(changed)[0, 1, 2, 64:]
    )
    # Widths that 64 doesn't divide are left unrotated, as llama.cpp leaves them.
    assert torch.equal(Rotated(fine, whole=True)(heads(width=96)), fine(heads(width=96)))


def test_static_fp8_clips_and_scales():
    x = torch.tensor([[[[0.0, 1.0, -0.3, 1000.0]]]])

    assert Static(torch.float8_e4m3fn)(x).tolist() == [[[[0.0, 1.0, pytest.approx(-0.3125), 448.0]]]]
    assert Static(torch.float8_e5m2)(x)[..., 3].item() == 1024
    scaled = Static(torch.float8_e4m3fn)(x, torch.tensor(4.0))
    assert scaled[..., 3].item() == 4 * 256
    x = heads()
    cut = Static(torch.float8_e4m3fn, truncated=True)(x)
    # The largest number of the format that is no farther from zero.
    numbers = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).to(torch.float32)
    places = torch.bucketize(x.abs().clamp_max(448).contiguous(), numbers, right=True) - 1
    assert torch.equal(cut, x.sign() * numbers[places])
    per_head = Static(torch.int8)(heads(), torch.tensor([0.1, 1.0, 10.0]).reshape(-1, 1, 1))
    assert set((per_head[:, 2] / 10).unique().tolist()) <= {float(i) for i in range(-128, 128)}


def test_a_scale_for_each_token_and_head():
    x = heads()
    largest = x.abs().amax(-1, keepdim=True)

    # vLLM cuts integers off: never farther from zero, and less than a step nearer.
    integers = PerTokenHead(torch.int8)(x)
    assert (integers.abs() <= x.abs() * (1 + 1e-6)).all()
    assert ((x - integers).abs() <= largest / 127 * (1 + 1e-5) + 1e-6).all()
    floats = PerTokenHead(torch.float8_e4m3fn)(x)
    assert ((x - floats).abs() <= x.abs() / 16 + largest / 448 * 2**-9).all()
    # Four bits for the range of 64 numbers without outliers are steps of a third of their deviation.
    even = torch.randn(1, 2, 50, 64, generator=torch.Generator().manual_seed(0))
    error = (Int4PerTokenHead()(even) - even).square().mean().sqrt()
    assert 0.07 < error < 0.12
    with pytest.raises(EvaluationError, match="power of two"):
        Int4PerTokenHead()(heads(width=96))


def test_mlx_groups_meet_the_larger_end():
    x = heads()
    rounded = AffineGroups(4)(x)
    groups = x.reshape(-1, 64)
    place = groups.abs().argmax(1, keepdim=True)

    ends = groups.gather(1, place)
    assert torch.allclose(rounded.reshape(-1, 64).gather(1, place), ends, rtol=1 / 64)
    assert AffineGroups(8).bits(128) == 8.5


def test_names():
    nothing = StoredScales()

    assert named_scheme("float", nothing) is None
    mixed = named_scheme("q8_0/q4_0", nothing)
    assert mixed.bits(64, 64) == 64 * 8.5 + 64 * 4.5
    for name in scheme_names()[1:]:
        assert named_scheme(name, nothing).bits(64, 64) <= 2 * 64 * 16
    with pytest.raises(EvaluationError, match="iq4_nl"):
        named_scheme("q3_0", nothing)
    with pytest.raises(EvaluationError, match="multiples of 32"):
        named_scheme("q4_0", nothing).keys(heads(width=48))
