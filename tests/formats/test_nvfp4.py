"""NVFP4 against compressed-tensors, which owns its layout, and on numbers that no model holds."""

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8, unpack_fp4_from_uint8
from compressed_tensors.quantization.lifecycle.forward import dequantize
from compressed_tensors.quantization.utils import generate_gparam
from compressed_tensors.quantization.utils.fp4_utils import cast_to_fp4
from hypothesis import given, settings
from hypothesis import strategies as st

from compressed_tensors_oracle import arguments, decompress, plain, to_torch
from fewbits.formats.minifloat import E2M1, E4M3
from fewbits.formats.nvfp4 import NVFP4Format, NVFP4Params
from fewbits.formats.registry import get_format
from format_properties import (
    check_asks_for_prepare,
    check_chunks,
    check_columns,
    check_finite,
    check_packing,
    check_refuses_uneven_rows,
    finite_weights,
    hard_weights,
    heavy_tailed,
    loss,
    quantize,
    same_bits,
    uneven_importance,
)

NVFP4 = NVFP4Format()


def owner_arguments():
    return arguments(
        num_bits=4,
        type="float",
        symmetric=True,
        strategy="tensor_group",
        group_size=16,
        scale_dtype=torch.float8_e4m3fn,
    )


def owner_global_scale(weight):
    w = torch.from_numpy(weight)
    return generate_gparam(w.min(), w.max())


def owner_plain(weight):
    return plain(
        weight, owner_arguments(), groups=weight.shape[1] // 16, global_scale=owner_global_scale(weight)
    )


class TestOwner:
    def test_all_codes_have_its_values(self):
        every = torch.arange(16, dtype=torch.uint8)[None]

        theirs = unpack_fp4_from_uint8(every, 1, 32, torch.float32)[0, ::2].numpy()

        same_bits(E2M1.values, theirs)

    def test_rounding_is_its(self):
        ties = (E2M1.values[1:8] + E2M1.values[:7]) / np.float32(2)
        x = np.concatenate(
            [
                np.random.default_rng(0).normal(0, 3, 100_000).astype(np.float32),
                *(np.nextafter(ties, np.float32(to)) for to in (-10, 10)),
                ties,
                np.array([7, 1e38, 1e-45], np.float32),
            ]
        )
        x = np.concatenate([x, -x])

        theirs = cast_to_fp4(torch.from_numpy(x)).numpy()

        same_bits(E2M1.nearest(x), theirs)

    def test_it_decompresses_our_parts_to_our_values(self):
        """It hands out bfloat16: our values, rounded once, must be the same bits."""
        codes, params, decoded = quantize(NVFP4, heavy_tailed(37, 192))

        tensors = to_torch(NVFP4, NVFP4.pack(codes, params))
        theirs = decompress("nvfp4-pack-quantized", owner_arguments(), tensors)

        same_bits(theirs, torch.from_numpy(decoded).bfloat16().float().numpy())

    def test_it_dequantizes_our_parts_to_our_values_in_float32(self):
        codes, params, decoded = quantize(NVFP4, heavy_tailed(37, 192))
        tensors = to_torch(NVFP4, NVFP4.pack(codes, params))

        theirs = dequantize(
            unpack_fp4_from_uint8(tensors["weight_packed"], 37, 192, torch.float32),
            tensors["weight_scale"].float(),
            args=owner_arguments(),
            global_scale=tensors["weight_global_scale"],
        )

        same_bits(theirs.numpy(), decoded)

    def test_codes_are_packed_as_it_packs_them(self):
        codes, params, _ = quantize(NVFP4, heavy_tailed(8, 64))

        theirs = pack_fp4_to_uint8(torch.from_numpy(E2M1.values[codes]))

        np.testing.assert_array_equal(NVFP4.pack(codes, params)["weight_packed"], theirs.numpy())

    @pytest.mark.parametrize("magnitude", [1.0, 1e-30, 1e30, 1e-39, 0.0])
    @pytest.mark.parametrize("seed", range(10))
    def test_global_scale_is_its(self, magnitude, seed):
        weight = heavy_tailed(8, 64, seed) * np.float32(magnitude)

        ours = quantize(NVFP4, weight)[1].global_scale

        assert (ours == owner_global_scale(weight).numpy()).all()

    def test_its_parameters_round_to_its_codes(self):
        weight = heavy_tailed(16, 192)
        scale, _, codes, decoded = owner_plain(weight)
        blocks = weight.reshape(-1, 16)
        params = NVFP4Params(
            E4M3.codes(scale.numpy().reshape(-1)),
            np.broadcast_to(owner_global_scale(weight).numpy(), blocks.shape[0]),
        )

        ours = NVFP4.round(blocks, params)

        same_bits(E2M1.values[ours].reshape(weight.shape), codes)
        same_bits(NVFP4.decode(ours, params).reshape(weight.shape), decoded)

    @pytest.mark.parametrize(("weighted", "share"), [(False, 0.85), (True, 0.75)])
    def test_our_error_is_smaller_than_its(self, weighted, share):
        weight = heavy_tailed(64, 512, seed=3)
        importance = uneven_importance(512) if weighted else None
        theirs = owner_plain(weight)[3]

        ours = quantize(NVFP4, weight, importance)[2]

        assert loss(weight, ours, importance) < share * loss(weight, theirs, importance)

    def test_no_block_has_a_larger_error_than_its(self):
        weight = heavy_tailed(64, 512, seed=3)

        def per_block(decoded):
            return ((weight - decoded).astype(np.float64).reshape(-1, 16) ** 2).sum(1)

        assert (per_block(quantize(NVFP4, weight)[2]) <= per_block(owner_plain(weight)[3]) * (1 + 1e-5)).all()


class TestProperties:
    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(weight=finite_weights(32))
    def test_finite_in_finite_out(self, weight):
        check_finite(NVFP4, weight)

    @pytest.mark.parametrize("name", hard_weights(48))
    def test_hard_weights(self, name):
        check_finite(NVFP4, hard_weights(48)[name])

    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(seed=st.integers(0, 2**32 - 1), weighted=st.booleans())
    def test_chunks_of_rows_change_nothing(self, seed, weighted):
        check_chunks(NVFP4, heavy_tailed(5, 64, seed), uneven_importance(64, seed) if weighted else None)

    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(weight=finite_weights(32))
    def test_columns_round_as_blocks_do(self, weight):
        check_columns(NVFP4, weight)

    def test_any_code_and_scale_survives_packing(self):
        rng = np.random.default_rng(0)
        codes = rng.integers(0, 16, (7, 64), dtype=np.uint8)
        params = NVFP4Params(rng.integers(1, 0x7F, 28, dtype=np.uint8), np.full(28, 123.0, np.float32))
        decoded = NVFP4.decode(codes.reshape(-1, 16), params).reshape(7, 64)

        check_packing(NVFP4, codes, params, decoded)

    def test_uneven_rows_are_refused(self):
        check_refuses_uneven_rows(NVFP4, 40)

    def test_fit_needs_prepare(self):
        check_asks_for_prepare(NVFP4)

    def test_registered(self):
        assert isinstance(get_format("nvfp4"), NVFP4Format)
        assert get_format("NVFP4").bits_per_weight((4096, 4096)) == pytest.approx(4.5, rel=1e-5)
