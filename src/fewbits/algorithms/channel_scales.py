"""Choosing the scales of channels, so that rounding weights and activations costs least.

A channel may be made s times smaller where it is produced if the columns that read it are made s times larger
(`calibration.find_folds`). In a group of columns that share a scale the largest decides the step for all; with

    M[n, b]   the size of row n's weights in group b, after scaling
    D[i]      what an error of column i costs that no other column can make up for: 1 / (H⁻¹)[i, i]

the loss of the weights is  Σ_n r[n] Σ_b M[n, b]² Σ_{i in b} D[i] / s[i]²  up to a constant, so columns that count for
much should be large beside their neighbours: AWQ's idea (arXiv 2306.00978), with D in place of the activations'
mean and a minimum instead of a search along one exponent. M is the 4-norm, which lies between the root mean square
and the largest and has a smooth minimum. Where the runtime rounds activations in blocks, their loss is added:

    Σ_b E[max_{i in b} x[i]² / s[i]²] Σ_{i in b} C[i] s[i]²        C[i] = Σ_n r[n] w[n, i]²

(SmoothQuant's concern, arXiv 2211.10438). Both are minimised together by a fixed point iteration: at the minimum,
what grows with s[i] equals what shrinks with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fewbits.calibration.statistics import Floats, Statistics, mean_square_peaks

_ITERATIONS = 10
# Beyond this, a channel is more likely an accident of the calibration text.
LARGEST = 32.0
_DAMP = 0.01
# Columns whose errors are taken to make up for each other: inverses of larger matrices gain nothing.
_TOGETHER = 2048
# Share of the square of a group's size (as the 4-norm has it) that rounding to about 5 bits costs, measured with
# GPTQ; and of a block's largest activation that rounding to 8 bits does.
_WEIGHT_SHARE = 0.35 / (12 * 16**2)
_ACTIVATION_SHARE = 1 / (12 * 127**2)

_Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Reader:
    """A map that reads the channels.

    Attributes:
        weight: some of its rows, float32 [n, K].
        importance: of these rows, float32 [n], scaled so that they stand for all rows.
        statistics: of the map.
    """

    weight: Floats
    importance: Floats
    statistics: Statistics


def channel_scales(
    readers: Sequence[Reader], channels: npt.NDArray[np.intp], group: int, activation_block: int = 0
) -> Floats:
    """What to multiply the readers' columns with; the producer's channels are divided by it.

    Args:
        readers: all maps that read the channels, all with K columns.
        channels: which channel each column reads, int [K], each in 0 … C - 1, all of them in use.
        group: columns that share a scale, a divisor of K.
        activation_block: activations that share one, a divisor of K; 0 if they aren't rounded.

    Returns:
        float32 [C], geometric mean 1.
    """
    count = int(channels.max()) + 1
    costs = [own_costs(reader.statistics.second_moment) for reader in readers]
    inputs = [_inputs(reader.statistics, activation_block) for reader in readers]
    scales = np.ones(count)
    for _ in range(_ITERATIONS):
        columns = scales[channels]
        growing, shrinking = np.zeros(len(channels)), np.zeros(len(channels))
        for reader, cost, x in zip(readers, costs, inputs, strict=True):
            more, less = _of_weights(reader, cost, columns, group)
            growing += _WEIGHT_SHARE * more
            shrinking += _WEIGHT_SHARE * less
            if x is not None:
                more, less = _of_activations(reader, x, columns, activation_block)
                growing += _ACTIVATION_SHARE * more
                shrinking += _ACTIVATION_SHARE * less
        up, down = np.bincount(channels, growing, count), np.bincount(channels, shrinking, count)
        ratio = np.divide(down, up, out=np.ones(count), where=(up > 0) & (down > 0))
        scales = np.clip(scales * ratio**0.25, 1 / LARGEST, LARGEST)
        scales /= np.exp(np.log(scales).mean())
    return scales.astype(np.float32)


def own_costs(second_moment: Floats) -> _Doubles:
    """What an error of each column costs that no other column can make up for: float64 [K], 1 / (H⁻¹)[i, i]."""
    width = len(second_moment)
    diagonal = np.diagonal(second_moment).astype(np.float64)
    damp = _DAMP * float(diagonal.mean()) or 1.0
    found = np.empty(width)
    for start in range(0, width, _TOGETHER):
        run = slice(start, min(start + _TOGETHER, width))
        part = second_moment[run, run].astype(np.float64)
        part[np.diag_indices(len(part))] += damp
        found[run] = 1 / np.diagonal(np.linalg.inv(part))
    return np.maximum(found, 1e-12 * damp)


def _of_weights(reader: Reader, cost: _Doubles, columns: _Doubles, group: int) -> tuple[_Doubles, _Doubles]:
    """The weights' loss by column: what grows with its scale, and what shrinks; both float64 [K]."""
    squares = np.square(np.square(reader.weight * columns.astype(np.float32))).reshape(
        len(reader.weight), -1, group
    )
    totals = squares.sum(axis=2)
    sizes = np.sqrt(totals) * reader.importance[:, None]  # r M², [n, groups]
    per_group = sizes.sum(axis=0, dtype=np.float64)
    remaining = (cost / columns**2).reshape(-1, group)
    shares = np.einsum(
        "nb,nbi->bi", np.divide(sizes, totals, out=np.zeros_like(sizes), where=totals > 0), squares
    )
    growing = shares * remaining.sum(axis=1, keepdims=True)
    return growing.reshape(-1).astype(np.float64), (per_group[:, None] * remaining).reshape(-1)


def _of_activations(reader: Reader, x: Floats, columns: _Doubles, block: int) -> tuple[_Doubles, _Doubles]:
    """The activations' loss by column, in the same way; x float32 [T, K]."""
    scaled = np.abs(x / columns.astype(np.float32)).reshape(len(x), -1, block)
    largest = scaled.max(axis=2, keepdims=True)
    # The share of each column in the 8-norm of its block stands for whether it is the largest.
    powers = np.divide(scaled, largest, out=np.zeros_like(scaled), where=largest > 0) ** 8
    powers /= np.maximum(powers.sum(axis=2, keepdims=True), 1e-30)
    peaks = np.square(largest)
    weights = np.einsum("n,nk->k", reader.importance, np.square(reader.weight), dtype=np.float64)
    own = (weights * columns**2).reshape(-1, block)
    growing = own * peaks.mean(axis=0, dtype=np.float64)
    shrinking = own.sum(axis=1, keepdims=True) * (powers * peaks).mean(axis=0, dtype=np.float64)
    return growing.reshape(-1), shrinking.reshape(-1)


def _inputs(statistics: Statistics, block: int) -> Floats | None:
    """Sampled inputs float32 [T, K], with √w_t, as large as all tokens' are; None without rounding or samples."""
    sample = statistics.sample
    if not block or sample is None or not len(sample) or block not in statistics.peaks:
        return None
    x = sample.astype(np.float32)
    peaks = float(mean_square_peaks(x, block).sum())
    whole = float(statistics.peaks[block].sum())
    return x * np.float32(np.sqrt(whole / peaks)) if peaks > 0 else None
