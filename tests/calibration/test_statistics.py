"""Losses of all rows together, of parts of them, and of rounded activations."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fewbits.calibration.linear_maps import mirrored
from fewbits.calibration.statistics import MOST_ROWS, Statistics, joint_loss, quadratic_loss
from fewbits.checkpoint.checkpoint import LazyTensor
from fewbits.formats.activation_grid import integer_grid
from fewbits.planning.activation_prices import price_activations
from fewbits.planning.joint_gain import joint_gain


class InMemory(LazyTensor):
    def __init__(self, values):
        self.name, self.shape, self.dtype, self.values = "w", values.shape, "F32", values

    def rows(self, start, stop):
        return self.values[start:stop].copy()


def example(rows=24, columns=64, block=8, seed=0):
    rng = np.random.default_rng(seed)
    x, g = rng.normal(size=(500, columns)), rng.normal(size=(500, rows)) + rng.normal(size=(500, 1))
    moment = g.T @ g / np.square(g).mean(0).mean() / 500
    outputs = np.stack([moment[i : i + block, i : i + block] for i in range(0, rows, block)]).astype(
        np.float16
    )
    h = (x.T @ x / 500).astype(np.float32)
    rows_alone = np.concatenate([np.diagonal(o) for o in outputs]).astype(np.float32)
    return Statistics(h, rows_alone, h, 500, outputs, outputs), rng.normal(size=(rows, columns)).astype(
        np.float32
    )


def test_joint_loss_is_the_quadratic_form_of_both_sides():
    statistics, error = example()
    full = np.zeros((24, 24))
    for i, block in enumerate(statistics.outputs):
        full[8 * i : 8 * i + 8, 8 * i : 8 * i + 8] = block
    expected = 0.5 * np.trace(full @ error @ statistics.second_moment @ error.T)
    assert joint_loss(error, statistics) == pytest.approx(expected, rel=1e-4)
    alone = replace(statistics, outputs=None)
    assert joint_loss(error, alone) == pytest.approx(
        quadratic_loss(error, statistics.second_moment, statistics.row_importance), rel=1e-5
    )


def test_rows_keep_the_correlations_among_them():
    statistics, error = example()
    order = np.random.default_rng(1).permutation(24)
    shuffled = statistics.of_rows(order)
    assert shuffled.outputs.shape == (1, 24, 24)
    assert joint_loss(error[order], shuffled) == pytest.approx(joint_loss(error, statistics), rel=1e-4)
    blocks = sum(joint_loss(error[i : i + 8], statistics.of_rows(slice(i, i + 8))) for i in range(0, 24, 8))
    assert blocks == pytest.approx(joint_loss(error, statistics), rel=1e-4)


def test_too_many_rows_are_taken_alone():
    rows = MOST_ROWS + 8
    many = Statistics(
        np.eye(2, dtype=np.float32), np.ones(rows, np.float32), np.eye(2, dtype=np.float32), 9,
        np.tile(np.eye(8, dtype=np.float16), (rows // 8, 1, 1)), None,
    )  # fmt: skip
    assert many.of_rows(slice(None)).outputs is None
    assert many.of_rows(slice(0, 8)).outputs.shape == (1, 8, 8)


@pytest.mark.parametrize("block", [32, 256])
def test_price_of_activations_is_what_rounding_them_costs(block):
    """Against rounding real numbers; the largest of a block is exact, so the price is a little too high."""
    rng = np.random.default_rng(3)
    x = (rng.normal(size=(2000, 256)) * np.exp(rng.normal(size=256))).astype(np.float32)
    weight = rng.normal(size=(40, 256)).astype(np.float32)
    token_weights = rng.uniform(0.5, 2, size=2000).astype(np.float32)
    peaks = {
        size: (token_weights @ np.square(np.abs(x).reshape(2000, -1, size).max(2)) / 2000).astype(np.float32)
        for size in (32, 256)
    }
    moment = np.eye(256, dtype=np.float32)
    statistics = Statistics(moment, np.ones(40, np.float32), moment, 2000, peaks=peaks)

    blocks = x.reshape(2000, -1, block)
    step = np.abs(blocks).max(2, keepdims=True) / 127
    rounded = (np.rint(blocks / step) * step).reshape(x.shape)
    cost = 0.5 * float((token_weights * np.square((rounded - x) @ weight.T).sum(1)).mean())

    grid = integer_grid(8, block)
    assert price_activations(InMemory(weight), statistics, [grid])[grid] == pytest.approx(cost, rel=0.06)
    assert price_activations(InMemory(weight), statistics, []) == {}


def test_gain_is_that_of_feedback_between_rows():
    statistics, _ = example(rows=24, block=24)
    assert 0.2 < joint_gain(statistics) < 0.95
    apart = np.eye(24, dtype=np.float16)[None]
    assert joint_gain(replace(statistics, outputs=apart, held_out_outputs=apart)) == pytest.approx(
        1, abs=0.01
    )
    assert joint_gain(replace(statistics, outputs=None)) == 1


@pytest.mark.parametrize("width", [3, 4, 11])
def test_upper_triangles_are_mirrored_in_place(width, monkeypatch):
    monkeypatch.setattr("fewbits.calibration.linear_maps._MIRRORED", 4)
    total = torch.randn(width, width, generator=torch.Generator().manual_seed(0))
    upper = torch.triu(total)

    assert mirrored(total) is total
    assert torch.equal(total, total.T)
    assert torch.equal(torch.triu(total), upper)
