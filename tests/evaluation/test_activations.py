"""The runtime's rounding of activations against formulas in NumPy and the gguf package."""

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize

from fewbits.evaluation.activations import (
    BF16,
    F16,
    Q8_0,
    Q8_K,
    ROUNDING,
    RuntimeActivations,
    storage_address,
)


def activations(rows=6, columns=512):
    x = np.random.default_rng(0).standard_t(3, (rows, columns)).astype(np.float32)
    x[1, :256] = 0
    x[2, 40] = 300
    return x


def in_blocks(x, block, scale_type):
    result = np.empty_like(x)
    for row, out in zip(x, result, strict=True):
        for start in range(0, len(row), block):
            piece = row[start : start + block]
            largest = np.abs(piece).max()
            if largest == 0:
                out[start : start + block] = 0
                continue
            codes = np.rint(piece * (np.float32(127) / largest))
            out[start : start + block] = codes * np.float32(scale_type(largest / np.float32(127)))
    return result


@pytest.mark.parametrize(("rounding", "block", "scale"), [(Q8_0, 32, np.float16), (Q8_K, 256, np.float32)])
def test_blocks(rounding, block, scale):
    x = activations()

    np.testing.assert_array_equal(rounding(torch.from_numpy(x)).numpy(), in_blocks(x, block, scale))


def test_q8_0_is_the_gguf_package_s():
    x = activations()
    kind = gguf.GGMLQuantizationType.Q8_0

    np.testing.assert_allclose(
        Q8_0(torch.from_numpy(x)).numpy(), dequantize(quantize(x, kind), kind), rtol=1e-6
    )


def test_float_types():
    x = activations()
    bits = x.view(np.uint32).astype(np.uint64)
    nearest_even = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)

    np.testing.assert_array_equal(BF16(torch.from_numpy(x)).numpy(), nearest_even)
    np.testing.assert_array_equal(F16(torch.from_numpy(x)).numpy(), x.astype(np.float16).astype(np.float32))


def test_rows_that_blocks_do_not_divide_are_left_alone():
    x = torch.from_numpy(activations(columns=320))

    assert torch.equal(Q8_K(x), x)
    assert not torch.equal(Q8_0(x), x)


def test_leading_dimensions_are_kept():
    x = torch.from_numpy(activations()).reshape(2, 3, 512)

    assert torch.equal(Q8_K(x).reshape(6, 512), Q8_K(x.reshape(6, 512)))


def test_every_type_that_fewbits_writes_is_known():
    blocks_of_32 = {"Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "MXFP4"}
    blocks_of_256 = {"Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K", "IQ4_XS"}

    assert {ROUNDING[name] for name in blocks_of_32} == {Q8_0}
    assert {ROUNDING[name] for name in blocks_of_256} == {Q8_K}
    assert (ROUNDING["F16"], ROUNDING["BF16"]) == (F16, BF16)
    assert "F32" not in ROUNDING


def test_linear_maps_round_their_input_and_only_where_told():
    linear, other = torch.nn.Linear(64, 8), torch.nn.Linear(64, 8)
    x = torch.from_numpy(activations(columns=64))

    with torch.inference_mode(), RuntimeActivations({storage_address(linear.weight): Q8_0}):
        rounded, plain = linear(x), other(x)

    assert torch.equal(rounded, torch.nn.functional.linear(Q8_0(x), linear.weight, linear.bias))
    assert torch.equal(plain, torch.nn.functional.linear(x, other.weight, other.bias))
    assert not torch.equal(rounded, linear(x))


def test_a_slice_of_stacked_experts_is_recognised():
    experts = torch.nn.Parameter(torch.randn(3, 8, 64))
    x = torch.from_numpy(activations(columns=64))

    with torch.inference_mode(), RuntimeActivations({storage_address(experts): Q8_0}):
        found = torch.nn.functional.linear(x, experts[1])

    assert torch.equal(found, Q8_0(x) @ experts[1].T) or torch.allclose(
        found, Q8_0(x) @ experts[1].T, rtol=1e-6
    )
    assert not torch.allclose(found, x @ experts[1].T, rtol=1e-6)
