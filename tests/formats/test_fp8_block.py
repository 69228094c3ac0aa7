"""FP8 in blocks of 128 rows and columns, against compressed-tensors; rows that share scales in algorithms."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from compressed_tensors_oracle import arguments, decompress, to_torch
from fewbits.algorithms import gptq, hqq, rtn
from fewbits.algorithms.coordinate_descent import descend
from fewbits.errors import FormatError
from fewbits.formats.format import QTensor
from fewbits.formats.fp8 import FP8Format
from fewbits.formats.fp8_block import FP8BlockFormat
from fewbits.formats.minifloat import E4M3
from fewbits.formats.numbers import numbers_of, taken_over
from fewbits.formats.registry import get_format
from fewbits.tuning.parameters import MatrixParameters
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

BLOCK = FP8BlockFormat()
ARGUMENTS = {
    "num_bits": 8, "type": "float", "symmetric": True, "strategy": "block", "block_structure": [128, 128]
}  # fmt: skip


def scales(params, rows):
    """Of each block, [ceil(N / 128), K / 128], all rows of which must have the same."""
    scale = params.scale.reshape(rows, -1)
    bands = [scale[first : first + 128] for first in range(0, rows, 128)]
    assert all((band == band[0]).all() for band in bands)
    return np.stack([band[0] for band in bands])


def covariance(columns, seed=0):
    x = np.random.default_rng(seed).standard_normal((columns + 64, columns)).astype(np.float32)
    x[:, 1:] += 0.5 * x[:, :-1]
    return (x.T @ x / len(x)).astype(np.float32)


class TestOwner:
    @pytest.mark.parametrize("rows", [128, 384, 200, 37])
    def test_it_decompresses_our_parts_to_our_values(self, rows):
        codes, params, decoded = quantize(BLOCK, heavy_tailed(rows, 256))
        parts = to_torch(BLOCK, BLOCK.pack(codes, params))

        assert list(parts["weight_scale"].shape) == [-(-rows // 128), 2]
        same_bits(decompress("float-quantized", arguments(**ARGUMENTS), parts), decoded)

    @pytest.mark.parametrize("rows", [256, 200])
    def test_our_error_is_smaller_than_that_of_plain_scales(self, rows):
        weight, importance = heavy_tailed(rows, 384, seed=3), uneven_importance(384)
        plain = np.empty_like(weight)
        for row in range(0, rows, 128):
            for column in range(0, 384, 128):
                tile = torch.from_numpy(weight[row : row + 128, column : column + 128])
                scale = tile.abs().max() / 448
                there = (tile / scale).to(torch.float8_e4m3fn).float() * scale
                plain[row : row + 128, column : column + 128] = there.numpy()

        assert loss(weight, quantize(BLOCK, weight)[2]) < loss(weight, plain)
        ours = quantize(BLOCK, weight, importance)[2]
        assert loss(weight, ours, importance) < loss(weight, plain, importance)


class TestProperties:
    @settings(max_examples=30, deadline=None, derandomize=True)
    @given(weight=finite_weights(128))
    def test_finite_in_finite_out(self, weight):
        check_finite(BLOCK, weight)

    @pytest.mark.parametrize("name", hard_weights(256))
    def test_hard_weights(self, name):
        check_finite(BLOCK, hard_weights(256)[name])

    @pytest.mark.parametrize("rows", [129, 256, 300])
    @pytest.mark.parametrize("weighted", [False, True])
    def test_chunks_of_bands_change_nothing(self, rows, weighted):
        check_chunks(BLOCK, heavy_tailed(rows, 256, 5), uneven_importance(256) if weighted else None)

    def test_columns_round_as_blocks_do(self):
        check_columns(BLOCK, heavy_tailed(140, 128))

    def test_rows_of_other_lengths_are_refused(self):
        check_refuses_uneven_rows(BLOCK, 192)

    def test_the_last_band_may_be_cut_where_no_rows_follow(self):
        assert BLOCK.divides(0, 256)
        assert BLOCK.divides(384, 256)
        assert not BLOCK.divides(200, 256)
        with pytest.raises(FormatError, match=r"multiple of 128.*200 rows"):
            BLOCK.check_extent(200, 256)

    def test_parts_and_bytes(self):
        parts = BLOCK.parts((300, 256))
        assert (parts["weight"].dtype, parts["weight"].shape) == ("F8_E4M3", (300, 256))
        assert (parts["weight_scale"].dtype, parts["weight_scale"].shape) == ("F32", (3, 2))
        assert parts["weight_scale"].range(128, 300) == (1, 3)
        assert BLOCK.nbytes((300, 256)) == 300 * 256 + 4 * 6
        assert get_format("fp8_e4m3_block").name == BLOCK.name


class TestBands:
    """Algorithms keep scales equal where rows share them."""

    @pytest.mark.parametrize("rows", [128, 300])
    @pytest.mark.parametrize("algorithm", ["rtn", "hqq", "gptq", "renewed"])
    def test_rows_of_a_band_keep_one_scale(self, rows, algorithm):
        weight, hessian = heavy_tailed(rows, 256, seed=1), covariance(256)
        made = {
            "rtn": lambda: rtn.quantize(weight, BLOCK),
            "hqq": lambda: hqq.quantize(weight, BLOCK),
            "gptq": lambda: QTensor(BLOCK, weight.shape, *gptq._in_one_sweep(weight, hessian, BLOCK)),
            "renewed": lambda: descend(
                weight, rtn.quantize(weight, BLOCK), hessian, 2, lambda w, h: gptq._in_one_sweep(w, h, BLOCK)
            ),
        }[algorithm]()

        assert scales(made.params, rows).shape == (-(-rows // 128), 2)
        check_packing(BLOCK, made.codes, made.params, made.dequantize())

    def test_descent_lowers_the_loss_of_each_band(self):
        weight, hessian = heavy_tailed(300, 256, seed=2), covariance(256, 1)
        start = rtn.quantize(weight, BLOCK)
        made = descend(weight, start, hessian, 3)

        def losses(made):
            error = (weight - made.dequantize()).astype(np.float64)
            return np.add.reduceat(((error @ hessian) * error).sum(axis=1), [0, 128, 256])

        assert (losses(made) < losses(start)).all()
        assert (scales(made.params, 300) != scales(start.params, 300)).any()

    def test_trained_scales_stay_equal(self):
        weight = heavy_tailed(200, 256, seed=4)
        parameters = MatrixParameters(rtn.quantize(weight, BLOCK), 0)
        slope = np.random.default_rng(0).standard_normal(weight.shape).astype(np.float32)
        start = np.zeros(400, np.float32)
        (gradient,) = parameters.gradients(slope, [start])
        moved = parameters.with_coefficients(tuple(c * np.exp(-1e-3 * gradient) for c in parameters.start))

        # The gradient is the derivative of <slope, weights> by one logarithm that all rows of a block share.
        step = np.zeros((200, 2), np.float32)
        step[:128, 1] = 1e-2
        change = (
            slope * (parameters.values([step.reshape(-1)]) - parameters.values([-step.reshape(-1)]))
        ).sum()
        assert gradient.reshape(200, 2)[5, 1] == pytest.approx(change / 2e-2, rel=1e-3)
        scales(moved.params, 200)


class TestNumbers:
    def test_it_takes_over_its_own_and_no_scales_of_rows(self):
        made = rtn.quantize(heavy_tailed(200, 256), BLOCK)
        again = taken_over(numbers_of(made), BLOCK, made.shape)
        by_row = rtn.quantize(heavy_tailed(200, 256), FP8Format(E4M3, "CHANNEL"))
        alike = QTensor(by_row.format, by_row.shape, by_row.codes, by_row.params.take(np.zeros(200, np.intp)))

        assert np.array_equal(again.codes, made.codes)
        assert np.array_equal(again.params.scale, made.params.scale)
        with pytest.raises(FormatError, match="same for 128 rows"):
            taken_over(numbers_of(by_row), BLOCK, made.shape)
        assert scales(taken_over(numbers_of(alike), BLOCK, made.shape).params, 200).shape == (2, 2)
