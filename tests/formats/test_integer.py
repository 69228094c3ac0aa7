"""Integers against compressed-tensors, which owns their layout, and on numbers that no model holds."""

import gguf
import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from hypothesis import given, settings
from hypothesis import strategies as st

from compressed_tensors_oracle import arguments, decompress, plain, to_torch
from fewbits.errors import FormatError
from fewbits.formats.bit_packing import pack_words, unpack_words
from fewbits.formats.integer import IntegerFormat
from fewbits.formats.integer_grid import IntegerParams
from fewbits.formats.minifloat import bfloat16_bits, bfloat16_values, round_bfloat16
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

WIDTHS = range(2, 9)
SYMMETRIC = pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
SCOPES = pytest.mark.parametrize("scope", [16, 32, 64, 128, "CHANNEL", "TENSOR"])

formats = st.builds(
    lambda width, scope, symmetric: make(width, scope, symmetric),
    st.integers(2, 8),
    st.sampled_from([16, 32, "CHANNEL", "TENSOR"]),
    st.booleans(),
)


def make(width, scope, symmetric):
    if isinstance(scope, int):
        return IntegerFormat(width, "GROUP", scope, symmetric=symmetric)
    return IntegerFormat(width, scope, symmetric=symmetric)


def owner_arguments(fmt):
    scope = {"GROUP": {"strategy": "group", "group_size": fmt.block}}
    return arguments(
        num_bits=fmt.width,
        type="int",
        symmetric=fmt.symmetric,
        **scope.get(fmt.scope, {"strategy": fmt.scope.lower()}),
    )


def owner_plain(fmt, weight):
    groups = {"GROUP": weight.shape[1] // (fmt.block or 1), "CHANNEL": 1, "TENSOR": 0}[fmt.scope]
    dtype = torch.bfloat16 if fmt.packed else torch.float32
    return plain(weight, owner_arguments(fmt), dtype, groups)


class TestOwner:
    @SCOPES
    @SYMMETRIC
    @pytest.mark.parametrize("width", WIDTHS)
    def test_it_decompresses_our_parts_to_our_values(self, width, symmetric, scope):
        fmt = make(width, scope, symmetric)
        weight = heavy_tailed(37, 384)
        codes, params, decoded = quantize(fmt, weight)
        tensors = to_torch(fmt, fmt.pack(codes, params))
        if fmt.packed:
            tensors["weight_shape"] = torch.tensor(weight.shape)

        container = "pack-quantized" if fmt.packed else "int-quantized"
        theirs = decompress(container, owner_arguments(fmt), tensors)

        same_bits(theirs, decoded)

    @SCOPES
    @SYMMETRIC
    @pytest.mark.parametrize("width", WIDTHS)
    def test_its_parameters_round_to_its_codes(self, width, symmetric, scope):
        fmt = make(width, scope, symmetric)
        weight = heavy_tailed(16, 384)
        scale, zero, codes, decoded = owner_plain(fmt, weight)
        block = fmt.block_of(384)
        blocks = weight.reshape(-1, block)
        middle = 2 ** (width - 1)
        params = IntegerParams(
            np.broadcast_to(scale.float().numpy().reshape(-1), blocks.shape[0]),
            np.broadcast_to(
                (zero.numpy().reshape(-1).astype(np.int16) + middle).astype(np.uint8), blocks.shape[0]
            ),
        )

        ours = fmt.round(blocks, params)

        np.testing.assert_array_equal(ours.reshape(weight.shape) - float(middle), codes)
        same_bits(fmt.decode(ours, params).reshape(weight.shape), decoded)

    @SCOPES
    @SYMMETRIC
    @pytest.mark.parametrize("width", WIDTHS)
    def test_our_error_is_no_larger_than_its(self, width, symmetric, scope):
        fmt = make(width, scope, symmetric)
        weight, importance = heavy_tailed(24, 512, seed=3), uneven_importance(512)
        theirs = owner_plain(fmt, weight)[3]

        even = np.ones(512, np.float32)
        assert loss(weight, quantize(fmt, weight, even)[2]) <= loss(weight, theirs)
        if scope != "TENSOR":
            weighted = quantize(fmt, weight, importance)[2]
            assert loss(weight, weighted, importance) <= loss(weight, theirs, importance)

    @pytest.mark.parametrize("columns", [1, 7, 8, 31, 32, 33, 64, 100])
    @pytest.mark.parametrize("width", WIDTHS)
    def test_words_are_its_words(self, width, columns):
        codes = np.random.default_rng(width).integers(0, 2**width, (5, columns), dtype=np.uint8)
        signed = torch.from_numpy((codes.astype(np.int16) - 2 ** (width - 1)).astype(np.int8))

        words = pack_words(codes, width)

        np.testing.assert_array_equal(words, pack_to_int32(signed, width).numpy())
        theirs = unpack_from_int32(torch.from_numpy(words.copy()), width, signed.shape)
        np.testing.assert_array_equal(theirs, signed)
        np.testing.assert_array_equal(unpack_words(words, width, columns), codes)


class TestFit:
    @SYMMETRIC
    @pytest.mark.parametrize("width", [2, 3, 4])
    def test_importance_lowers_the_weighted_error(self, width, symmetric):
        fmt = make(width, 64, symmetric)
        weight, importance = heavy_tailed(64, 512), uneven_importance(512)

        informed = loss(weight, quantize(fmt, weight, importance)[2], importance)
        uninformed = loss(weight, quantize(fmt, weight)[2], importance)

        assert informed < 0.97 * uninformed

    @pytest.mark.parametrize(("width", "share"), [(2, 0.50), (3, 0.70), (4, 0.85)])
    def test_clipping_pays_at_few_bits(self, width, share):
        """The search must beat min-max by far, not merely equal it."""
        fmt = make(width, 64, symmetric=True)
        weight = heavy_tailed(64, 512)

        found = quantize(fmt, weight, np.ones(512, np.float32))[2]
        assert loss(weight, found) < share * loss(weight, owner_plain(fmt, weight)[3])

    @pytest.mark.parametrize(
        ("width", "symmetric", "weighs"), [(4, True, True), (5, True, False), (4, False, False)]
    )
    def test_without_importance_few_symmetric_bits_keep_the_largest_numbers(self, width, symmetric, weighs):
        fmt = make(width, 64, symmetric)
        weight = heavy_tailed(64, 512)
        square = weight.reshape(-1, 64) ** 2
        importance = (square + square.mean(axis=1, keepdims=True)).reshape(weight.shape)

        blind, even, by_size = (
            quantize(fmt, weight, i)[2] for i in (None, np.ones(512, np.float32), importance)
        )

        assert loss(weight, by_size, importance) < 0.97 * loss(weight, even, importance)
        assert loss(weight, blind, importance) == pytest.approx(
            loss(weight, by_size if weighs else even, importance), rel=1e-3
        )

    @pytest.mark.parametrize("weighted", [False, True])
    def test_four_bits_in_32_columns_beat_the_same_grid_in_gguf(self, weighted):
        """Q4_0 is the same grid with a float16 scale, rounded by the gguf package without a search."""
        weight = heavy_tailed(64, 512)
        importance = uneven_importance(512) if weighted else np.ones(512, np.float32)
        theirs = gguf.quants.dequantize(
            gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q4_0), gguf.GGMLQuantizationType.Q4_0
        )

        ours = quantize(make(4, 32, symmetric=True), weight, importance)[2]

        assert loss(weight, ours, importance) < 0.93 * loss(weight, theirs, importance)

    def test_it_finds_a_grid_that_holds_the_weights_exactly(self):
        codes = np.random.default_rng(0).integers(0, 16, (40, 64)).astype(np.float32)
        codes[:, :2] = 0, 15
        scale = round_bfloat16(np.exp(np.random.default_rng(1).normal(size=(40, 1))).astype(np.float32))
        weight = round_bfloat16((codes - 6) * scale)

        decoded = quantize(make(4, 64, symmetric=False), weight)[2]

        np.testing.assert_allclose(decoded, weight, rtol=0.01)

    def test_zero_importance_counts_as_none(self):
        weight = heavy_tailed(4, 64)
        fmt = make(4, 64, symmetric=False)

        ignored, missing = fmt.fit(weight, np.zeros(64, np.float32)), fmt.fit(weight)

        np.testing.assert_array_equal(ignored.scale, missing.scale)
        np.testing.assert_array_equal(ignored.zero, missing.zero)

    @pytest.mark.parametrize("magnitude", [1e-30, 1e30])
    def test_importance_of_any_magnitude_serves(self, magnitude):
        weight, importance = heavy_tailed(4, 64), uneven_importance(64)
        fmt = make(4, 64, symmetric=True)

        scaled = fmt.fit(weight, importance * np.float32(magnitude))

        np.testing.assert_allclose(scaled.scale, fmt.fit(weight, importance).scale, rtol=0.02)

    def test_scale_of_8_bit_activations_formats_is_positive(self):
        scale = quantize(make(8, "CHANNEL", symmetric=True), heavy_tailed(64, 256))[1].scale

        assert (scale > 0).all()


class TestProperties:
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(fmt=formats, weight=finite_weights(64))
    def test_finite_in_finite_out(self, fmt, weight):
        check_finite(fmt, weight)

    @SYMMETRIC
    @pytest.mark.parametrize("scope", [16, "CHANNEL", "TENSOR"])
    @pytest.mark.parametrize("width", WIDTHS)
    @pytest.mark.parametrize("name", hard_weights(64))
    def test_hard_weights(self, name, width, scope, symmetric):
        check_finite(make(width, scope, symmetric), hard_weights(64)[name])

    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(fmt=formats, seed=st.integers(0, 2**32 - 1), weighted=st.booleans())
    def test_chunks_of_rows_change_nothing(self, fmt, seed, weighted):
        check_chunks(fmt, heavy_tailed(41, 64, seed), uneven_importance(64, seed) if weighted else None)

    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(fmt=formats, weight=finite_weights(32))
    def test_columns_round_as_blocks_do(self, fmt, weight):
        check_columns(fmt, weight)

    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(fmt=formats, rows=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
    def test_any_code_and_zero_point_survives_packing(self, fmt, rows, seed):
        rng = np.random.default_rng(seed)
        codes = rng.integers(0, 2**fmt.width, (rows, 32), dtype=np.uint8)
        blocks = codes.size // fmt.block_of(32)
        tensor = fmt.scope == "TENSOR"
        scale = round_bfloat16(rng.normal(size=1 if tensor else blocks).astype(np.float32))
        zero = rng.integers(0, 2**fmt.width, 1 if tensor else blocks, dtype=np.uint8)
        if fmt.symmetric:
            zero[:] = 2 ** (fmt.width - 1)
        params = IntegerParams(np.broadcast_to(scale, blocks), np.broadcast_to(zero, blocks))
        decoded = fmt.decode(codes.reshape(blocks, -1), params).reshape(codes.shape)

        check_packing(fmt, codes, params, decoded)

    @pytest.mark.parametrize("group", [16, 32, 64, 128])
    def test_uneven_rows_are_refused(self, group):
        check_refuses_uneven_rows(make(4, group, symmetric=True), group + 8)

    @SYMMETRIC
    def test_tensor_scale_needs_prepare(self, symmetric):
        check_asks_for_prepare(make(8, "TENSOR", symmetric))

    @SYMMETRIC
    def test_all_rows_share_the_tensor_scale(self, symmetric):
        params = quantize(make(8, "TENSOR", symmetric), heavy_tailed(9, 64))[1]

        assert params.scale.shape == params.zero.shape == (9,)
        assert (params.scale == params.scale[0]).all()
        assert (params.zero == params.zero[0]).all()


class TestNames:
    @SCOPES
    @SYMMETRIC
    @pytest.mark.parametrize("width", WIDTHS)
    def test_name_leads_to_format(self, width, symmetric, scope):
        fmt = make(width, scope, symmetric)

        found = get_format(fmt.name)

        assert isinstance(found, IntegerFormat)
        assert (found.width, found.scope, found.block, found.symmetric) == (
            (width, "GROUP", scope, symmetric) if isinstance(scope, int) else (width, scope, 0, symmetric)
        )

    @pytest.mark.parametrize("name", ["INT1_G64", "INT9_G64", "INT4_G48", "INT4", "INT4_G64_ASYM"])
    def test_other_names_are_refused(self, name):
        with pytest.raises(FormatError):
            get_format(name)

    def test_fallbacks_end_at_a_scale_per_row(self):
        names, fmt = [], get_format("INT4_G128_SYM")
        while fmt.fallback:
            fmt = get_format(fmt.fallback)
            names.append(fmt.name)

        assert names == ["INT4_G64_SYM", "INT4_G32_SYM", "INT4_G16_SYM", "INT4_CHANNEL_SYM"]

    @pytest.mark.parametrize(
        ("name", "bits"),
        [("INT4_G64", 4.3125), ("INT4_G128_SYM", 4.125), ("INT3_G16", 4.1875), ("INT8_TENSOR", 8)],
    )
    def test_bits_per_weight(self, name, bits):
        fmt = get_format(name)

        assert float(fmt.bits) == bits
        assert fmt.bits_per_weight((4096, 4096)) == pytest.approx(bits, rel=1e-5)


def test_bfloat16_rounds_as_torch_does():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 0x7F7F0000, 50_000, dtype=np.uint32) | (
        rng.integers(0, 2, 50_000, dtype=np.uint32) << np.uint32(31)
    )
    ties = (bits & np.uint32(0xFFFF0000)) | np.uint32(0x8000)
    x = np.concatenate([bits, ties]).view(np.float32)

    ours = round_bfloat16(x)

    same_bits(ours, torch.from_numpy(x).bfloat16().float().numpy())
    same_bits(bfloat16_values(bfloat16_bits(ours)), ours)
