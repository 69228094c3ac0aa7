"""FP8 against torch's own casts and compressed-tensors' decompression, and on numbers that no model holds."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressed_tensors_oracle import arguments, decompress, plain, to_torch
from fewbits.errors import FormatError
from fewbits.formats.fp8 import FP8Format, FP8Params
from fewbits.formats.minifloat import E2M1, E4M3, E5M2
from fewbits.formats.registry import get_format
from format_properties import (
    check_asks_for_prepare,
    check_chunks,
    check_columns,
    check_finite,
    finite_weights,
    hard_weights,
    heavy_tailed,
    loss,
    quantize,
    same_bits,
    uneven_importance,
)

GRIDS = pytest.mark.parametrize(
    ("grid", "dtype"), [(E4M3, torch.float8_e4m3fn), (E5M2, torch.float8_e5m2)], ids=["E4M3", "E5M2"]
)
SCOPES = pytest.mark.parametrize("scope", ["CHANNEL", "TENSOR"])
ALL = [FP8Format(grid, scope) for grid in (E4M3, E5M2) for scope in ("CHANNEL", "TENSOR")]
EACH = pytest.mark.parametrize("fmt", ALL, ids=lambda fmt: fmt.name)


def owner_arguments(scope):
    return arguments(num_bits=8, type="float", symmetric=True, strategy=scope.lower())


def torch_absmax(weight, grid, dtype, scope):
    """The plain way to FP8: divide by the largest magnitude, cast, multiply."""
    w = torch.from_numpy(weight)
    scale = (w.abs().amax(1, keepdim=True) if scope == "CHANNEL" else w.abs().max()) / grid.maximum
    return ((w / scale).clamp(-grid.maximum, grid.maximum).to(dtype).float() * scale).numpy()


class TestGrid:
    @GRIDS
    def test_all_codes_have_torchs_values(self, grid, dtype):
        theirs = torch.arange(256, dtype=torch.uint8).view(dtype).float().numpy()

        np.testing.assert_array_equal(grid.values, theirs)
        same_bits(np.nan_to_num(grid.values), np.nan_to_num(theirs))

    @GRIDS
    def test_rounding_is_torchs(self, grid, dtype):
        """Random numbers of every exponent, all ties between codes and their neighbours, and beyond."""
        rng = np.random.default_rng(0)
        bits = rng.integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
        finite = np.sort(grid.values[np.isfinite(grid.values)])
        ties = (finite[1:] + finite[:-1]) / np.float32(2)
        near = rng.normal(size=200_000).astype(np.float32) * np.exp(rng.normal(-3, 4, 200_000)).astype(
            np.float32
        )
        x = np.concatenate(
            [
                bits[np.isfinite(bits)],
                near,
                finite,
                ties,
                np.nextafter(ties, np.float32(np.inf)),
                np.nextafter(ties, np.float32(-np.inf)),
                np.array([0.0, -0.0, 1e38, -1e38, 1e-45, -1e-45, np.inf, -np.inf], np.float32),
            ]
        )

        theirs = torch.from_numpy(x).clamp(-grid.maximum, grid.maximum).to(dtype).view(torch.uint8).numpy()

        np.testing.assert_array_equal(grid.codes(x), theirs)

    @pytest.mark.parametrize("grid", [E4M3, E5M2, E2M1], ids=lambda grid: grid.name)
    def test_values_round_to_themselves(self, grid):
        codes = np.flatnonzero(np.isfinite(grid.values))

        np.testing.assert_array_equal(grid.codes(grid.values[codes]), codes)


class TestOwner:
    @SCOPES
    def test_it_decompresses_our_parts_to_our_values(self, scope):
        fmt = FP8Format(E4M3, scope)
        codes, params, decoded = quantize(fmt, heavy_tailed(37, 200))

        theirs = decompress("float-quantized", owner_arguments(scope), to_torch(fmt, fmt.pack(codes, params)))

        same_bits(theirs, decoded)

    @SCOPES
    def test_torch_multiplies_e5m2_parts_to_our_values(self, scope):
        fmt = FP8Format(E5M2, scope)
        codes, params, decoded = quantize(fmt, heavy_tailed(37, 200))
        parts = to_torch(fmt, fmt.pack(codes, params))

        same_bits((parts["weight"].float() * parts["weight_scale"]).numpy(), decoded)

    @SCOPES
    def test_its_parameters_round_to_its_codes(self, scope):
        weight = heavy_tailed(16, 200)
        scale, _, codes, decoded = plain(weight, owner_arguments(scope), groups=int(scope == "CHANNEL"))
        fmt = FP8Format(E4M3, scope)
        params = FP8Params(np.broadcast_to(scale.numpy().reshape(-1), 16))

        ours = fmt.round(weight, params)

        same_bits(E4M3.values[ours], codes)
        same_bits(fmt.decode(ours, params), decoded)

    @SCOPES
    @GRIDS
    def test_our_error_is_no_larger_than_a_plain_casts(self, grid, dtype, scope):
        weight, importance = heavy_tailed(64, 512, seed=3), uneven_importance(512)
        fmt = FP8Format(grid, scope)
        theirs = torch_absmax(weight, grid, dtype, scope)

        assert loss(weight, quantize(fmt, weight)[2]) <= loss(weight, theirs)
        if scope == "CHANNEL":
            weighted = quantize(fmt, weight, importance)[2]
            assert loss(weight, weighted, importance) <= loss(weight, theirs, importance)

    def test_our_error_is_no_larger_than_its(self):
        weight = heavy_tailed(64, 512, seed=3)
        theirs = plain(weight, owner_arguments("CHANNEL"))[3]

        assert loss(weight, quantize(FP8Format(E4M3, "CHANNEL"), weight)[2]) < loss(weight, theirs)


class TestProperties:
    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(fmt=st.sampled_from(ALL), weight=finite_weights(24))
    def test_finite_in_finite_out(self, fmt, weight):
        check_finite(fmt, weight)

    @EACH
    @pytest.mark.parametrize("name", hard_weights(40))
    def test_hard_weights(self, name, fmt):
        check_finite(fmt, hard_weights(40)[name])

    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(fmt=st.sampled_from(ALL), seed=st.integers(0, 2**32 - 1), weighted=st.booleans())
    def test_chunks_of_rows_change_nothing(self, fmt, seed, weighted):
        check_chunks(fmt, heavy_tailed(5, 100, seed), uneven_importance(100, seed) if weighted else None)

    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(fmt=st.sampled_from(ALL), weight=finite_weights(20))
    def test_columns_round_as_blocks_do(self, fmt, weight):
        check_columns(fmt, weight)

    @pytest.mark.parametrize("grid", [E4M3, E5M2], ids=lambda grid: grid.name)
    def test_tensor_scale_needs_prepare(self, grid):
        check_asks_for_prepare(FP8Format(grid, "TENSOR"))

    @EACH
    def test_empty_rows_are_refused(self, fmt):
        with pytest.raises(FormatError, match="rows of 0"):
            fmt.nbytes((4, 0))


class TestNames:
    @EACH
    def test_name_leads_to_format(self, fmt):
        found = get_format(fmt.name)

        assert isinstance(found, FP8Format)
        assert (found.grid, found.scope) == (fmt.grid, fmt.scope)

    @pytest.mark.parametrize("name", ["FP8_E4M3", "FP8_E3M4_CHANNEL", "FP8_E4M3_B128"])
    def test_other_names_are_refused(self, name):
        with pytest.raises(FormatError):
            get_format(name)
