"""MXFP4 in two arrays against compressed-tensors, which owns that layout."""

import numpy as np
import pytest
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8

from compressed_tensors_oracle import arguments, decompress, to_torch
from fewbits.formats.gguf_mxfp4 import ExponentParams
from fewbits.formats.minifloat import E2M1
from fewbits.formats.registry import get_format
from format_properties import (
    check_chunks,
    check_columns,
    check_finite,
    check_packing,
    check_refuses_uneven_rows,
    hard_weights,
    heavy_tailed,
    quantize,
    uneven_importance,
)

PACKED = get_format("MXFP4_PACKED")


def test_it_decompresses_our_parts_to_our_values():
    codes, params, decoded = quantize(PACKED, heavy_tailed(37, 192))

    args = arguments(num_bits=4, type="float", symmetric=True, strategy="group", group_size=32)
    theirs = decompress("mxfp4-pack-quantized", args, to_torch(PACKED, PACKED.pack(codes, params)))

    np.testing.assert_array_equal(theirs, decoded)


def test_codes_are_its_numbers():
    every = np.arange(16, dtype=np.uint8).repeat(2)[None]
    packed = PACKED.pack(every, ExponentParams(np.array([127], np.uint8)))["weight_packed"]

    theirs = unpack_fp4_from_uint8(to_torch(PACKED, {"weight_packed": packed})["weight_packed"], 1, 32)

    np.testing.assert_array_equal(theirs.float().numpy()[0], E2M1.values.repeat(2))


@pytest.mark.parametrize("weighted", [False, True])
def test_numbers_are_those_of_gguf(weighted):
    weight, importance = heavy_tailed(8, 128), uneven_importance(128) if weighted else None

    for ours, theirs in zip(
        quantize(PACKED, weight, importance),
        quantize(get_format("MXFP4"), weight, importance),
        strict=True,
    ):
        np.testing.assert_array_equal(getattr(ours, "e", ours), getattr(theirs, "e", theirs))


@pytest.mark.parametrize("name", hard_weights(64))
def test_hard_weights(name):
    check_finite(PACKED, hard_weights(64)[name])


def test_rows_and_columns_are_independent():
    check_chunks(PACKED, heavy_tailed(5, 64))
    check_columns(PACKED, heavy_tailed(5, 32))


def test_any_code_and_scale_survives_packing():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (7, 64), dtype=np.uint8)
    params = ExponentParams(rng.integers(0, 253, 14, dtype=np.uint8))

    check_packing(PACKED, codes, params, PACKED.decode(codes.reshape(-1, 32), params).reshape(7, 64))


def test_uneven_rows_are_refused_and_bytes_are_exact():
    check_refuses_uneven_rows(PACKED, 40)
    assert PACKED.nbytes((3, 64)) == 3 * 2 * 17
