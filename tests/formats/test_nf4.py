"""NF4 against bitsandbytes, which owns it, and on numbers that no model holds."""

import bitsandbytes.functional as bnb
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.formats.nf4 import TABLE, NF4Format, NF4Params, nearest_codes
from fewbits.formats.registry import get_format
from format_properties import (
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

NF4 = NF4Format()


def owner_quantize(weight):
    """Packed bytes [N * K / 2, 1] and absmax [N * K / 64] as bitsandbytes computes them."""
    packed, state = bnb.quantize_4bit(torch.from_numpy(weight), blocksize=64, quant_type="nf4")
    return packed.numpy(), state.absmax.numpy()


def owner_dequantize(packed, absmax, shape):
    out = torch.empty(shape, dtype=torch.float32)
    state = bnb.QuantState(
        torch.from_numpy(absmax), shape=out.shape, dtype=out.dtype, blocksize=64, quant_type="nf4"
    )
    return bnb.dequantize_4bit(torch.from_numpy(packed), state).numpy()


class TestOwner:
    def test_table_is_its(self):
        same_bits(TABLE, bnb.get_4bit_type("nf4", device="cpu").numpy())

    def test_it_dequantizes_our_parts_to_our_values(self):
        codes, params, decoded = quantize(NF4, heavy_tailed(37, 192))
        parts = NF4.pack(codes, params)

        theirs = owner_dequantize(
            parts["weight"].reshape(-1, 1), parts["weight.absmax"].reshape(-1), (37, 192)
        )

        same_bits(theirs, decoded)

    def test_plain_absmax_gives_its_bytes(self):
        weight = heavy_tailed(64, 512)
        blocks = weight.reshape(-1, 64)
        params = NF4Params(np.abs(blocks).max(axis=1))
        packed, absmax = owner_quantize(weight)

        parts = NF4.pack(NF4.round(blocks, params).reshape(weight.shape), params)

        np.testing.assert_array_equal(parts["weight"].reshape(-1, 1), packed)
        same_bits(parts["weight.absmax"].reshape(-1), absmax)

    def test_its_bytes_unpack_to_its_values(self):
        weight = heavy_tailed(8, 128)
        packed, absmax = owner_quantize(weight)

        codes, params = NF4.unpack({"weight": packed, "weight.absmax": absmax}, (8, 128))

        theirs = owner_dequantize(packed, absmax, (8, 128))
        same_bits(NF4.decode(codes.reshape(-1, 64), params).reshape(8, 128), theirs)

    @pytest.mark.parametrize(("weighted", "share"), [(False, 0.97), (True, 0.9)])
    def test_our_error_is_smaller_than_its(self, weighted, share):
        weight = heavy_tailed(64, 512, seed=3)
        importance = uneven_importance(512) if weighted else None
        theirs = owner_dequantize(*owner_quantize(weight), weight.shape)

        ours = quantize(NF4, weight, importance)[2]

        assert loss(weight, ours, importance) < share * loss(weight, theirs, importance)


class TestRounding:
    def test_table_lookup_is_the_nearest_number(self):
        bounds = (TABLE[1:] + TABLE[:-1]) / np.float32(2)
        x = np.concatenate(
            [
                np.random.default_rng(0).uniform(-1.2, 1.2, 200_000).astype(np.float32),
                *(np.nextafter(bounds, np.float32(to)) for to in (-2, 2)),
                bounds,
                np.array([0, -0.0, 1, -1, 1e38, -1e38, np.inf, -np.inf], np.float32),
            ]
        )

        np.testing.assert_array_equal(nearest_codes(x), np.searchsorted(bounds, x, side="left"))


class TestProperties:
    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(weight=finite_weights(64))
    def test_finite_in_finite_out(self, weight):
        check_finite(NF4, weight)

    @pytest.mark.parametrize("name", hard_weights(64))
    def test_hard_weights(self, name):
        check_finite(NF4, hard_weights(64)[name])

    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(seed=st.integers(0, 2**32 - 1), weighted=st.booleans())
    def test_chunks_of_rows_change_nothing(self, seed, weighted):
        check_chunks(NF4, heavy_tailed(5, 128, seed), uneven_importance(128, seed) if weighted else None)

    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(weight=finite_weights(64))
    def test_columns_round_as_blocks_do(self, weight):
        check_columns(NF4, weight)

    def test_any_code_survives_packing(self):
        codes = np.random.default_rng(0).integers(0, 16, (7, 128), dtype=np.uint8)
        params = NF4Params(np.linspace(0.1, 2, 14, dtype=np.float32))
        decoded = NF4.decode(codes.reshape(-1, 64), params).reshape(7, 128)

        check_packing(NF4, codes, params, decoded)

    def test_uneven_rows_are_refused(self):
        check_refuses_uneven_rows(NF4, 96)

    def test_registered(self):
        assert isinstance(get_format("nf4"), NF4Format)
        assert get_format("NF4").bits_per_weight((4096, 4096)) == pytest.approx(4.5, rel=1e-5)
