"""Choosing the scales of channels by the largest numbers themselves, where a scale is for many of them.

`channel_scales` treats groups of a few dozen columns, whose size the 4-norm stands for. Over a whole row, or over a
whole token of activations, the largest number alone decides the step, so here the loss is what it is: with

    P, Q      error of rounding a weight or an activation, as a share of the square of its block's largest
    D[i]      what an error of column i costs that no other column can make up for (`channel_scales`)
    C[i]      what an error of input i costs, (column i)ᵀ E[g gᵀ] (column i): the same in all rows, which add up

    1/2 P Σ_n r[n] Σ_b max_{i in b} (w[n, i] s[i])² Σ_{i in b} D[i] / s[i]²
      + 1/2 Q Σ_b E[max_{i in b} x[i]² / s[i]²] Σ_{i in b} C[i] s[i]²          nats per token

Maxima are p-norms whose p rises, and log s descends by Adam (arXiv 1412.6980). What is migrated is what SmoothQuant
(arXiv 2211.10438) migrates; it chooses by the two largest magnitudes and one exponent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from fewbits.algorithms.channel_scales import LARGEST, own_costs
from fewbits.calibration.statistics import Floats, Statistics, scaled_inputs
from fewbits.formats import get_format

_ITERATIONS = 80
_RATE = 0.08
_MOMENTA = (0.8, 0.95)
# p-norms of squares, as exponents of 2: a broad one finds the way, a sharp one is nearly the maximum.
_BROAD, _SHARP = 2, 5
# A block is rounded as it is and with one number so many times larger, to see what that does to the others.
_TRIED_BLOCKS, _OUTLIER = 64, 8.0
_WHOLE_ROW = 512

_Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PeakReader:
    """A map that reads the channels.

    Attributes:
        weight: some of its rows, float32 [n, K].
        importance: of these rows, float32 [n], scaled so that they stand for all rows.
        input_cost: C, float64 [K].
        statistics: of the map.
    """

    weight: Floats
    importance: Floats
    input_cost: _Doubles
    statistics: Statistics


@dataclass(frozen=True)
class Blocks:
    """Numbers that share a scale.

    Attributes:
        size: of a block, a divisor of K; 0: there are none.
        share: error as a share of the square of a block's largest.
    """

    size: int
    share: float


def peak_scales(
    readers: Sequence[PeakReader], channels: npt.NDArray[np.intp], weights: Blocks, activations: Blocks
) -> Floats:
    """What to multiply the readers' columns with; the producer's channels are divided by it.

    Args:
        readers: all maps that read the channels, all with K columns.
        channels: which channel each column reads, int [K], each in 0 … C - 1, all of them in use.
        weights: how the maps' weights are rounded.
        activations: how their inputs are.

    Returns:
        float32 [C], geometric mean 1.
    """
    count = int(channels.max()) + 1
    terms = [term for reader in readers for term in _terms(reader, weights, activations)]
    logarithms = _start(readers, channels, count)
    first, second = np.zeros(count), np.zeros(count)
    best, least = np.zeros(count), np.inf
    for step in range(_ITERATIONS + 1):
        sharpness = _BROAD + round((_SHARP - _BROAD) * min(2 * step / _ITERATIONS, 1))
        loss, gradient = _loss(terms, np.exp(logarithms)[channels], sharpness)
        if loss <= 0:
            return np.ones(count, np.float32)
        if sharpness == _SHARP and loss < least:
            best, least = logarithms, loss
        by_channel = np.bincount(channels, gradient, count) / loss
        first += (1 - _MOMENTA[0]) * (by_channel - first)
        second += (1 - _MOMENTA[1]) * (by_channel**2 - second)
        unbiased = second / (1 - _MOMENTA[1] ** (step + 1))
        rate = _RATE * (1 - step / (_ITERATIONS + 1)) / (1 - _MOMENTA[0] ** (step + 1))
        moved = logarithms - rate * first / (np.sqrt(unbiased) + 1e-12)
        logarithms = np.clip(moved - moved.mean(), -np.log(LARGEST), np.log(LARGEST))
    scales: Floats = np.exp(best - best.mean()).astype(np.float32)
    return scales


@cache
def share_of_peak(name: str) -> float:
    """Error of rounding to a format, as a share of the square of a block's largest number.

    Measured on normal numbers, of which one is made larger: 1 / (12 * 127²) for 8-bit integers, and 0 for
    floating-point numbers, which round relative to themselves.
    """
    fmt = get_format(name)
    size = fmt.group or fmt.block or _WHOLE_ROW
    width = fmt.block or _WHOLE_ROW
    weight = np.random.default_rng(0).standard_normal((_TRIED_BLOCKS, width), np.float32)
    losses, peaks = [], []
    for factor in (1.0, _OUTLIER):
        weight[:, :1] = 3.0 * np.float32(factor)
        bound = fmt.prepare([weight])
        params = bound.fit(weight)
        error = bound.decode(bound.round(weight, params), params) - weight
        losses.append(float(np.square(error[:, 1:size]).mean(dtype=np.float64)))
        peaks.append(float(np.square(np.abs(weight[:, :size]).max(axis=1)).mean(dtype=np.float64)))
    share = (losses[1] - losses[0]) / (peaks[1] - peaks[0])
    return share if losses[1] > 2 * losses[0] else 0.0


@dataclass(frozen=True)
class _Term:
    """Σ_b Σ_t max_{i in b} (squares[t, i] s[i]^±2) Σ_{i in b} costs[i] / s[i]^±2.

    Attributes:
        squares: float32 [T, B, K / B].
        costs: float64 [B, K / B].
        sign: of the exponent.
    """

    squares: Floats
    costs: _Doubles
    sign: int


def _terms(reader: PeakReader, weights: Blocks, activations: Blocks) -> list[_Term]:
    terms = []
    if weights.size and weights.share:
        rows = np.square(reader.weight) * (0.5 * weights.share * reader.importance)[:, None]
        terms.append(_term(rows, own_costs(reader.statistics.second_moment), weights.size, 1))
    inputs = scaled_inputs(reader.statistics)
    if activations.size and activations.share and inputs is not None:
        tokens = np.square(inputs) * np.float32(0.5 * activations.share / len(inputs))
        terms.append(_term(tokens, reader.input_cost, activations.size, -1))
    return terms


def _term(squares: Floats, costs: _Doubles, size: int, sign: int) -> _Term:
    return _Term(squares.astype(np.float32).reshape(len(squares), -1, size), costs.reshape(-1, size), sign)


def _start(readers: Sequence[PeakReader], channels: npt.NDArray[np.intp], count: int) -> _Doubles:
    """Logarithms float64 [C] of the scales that minimise Σ_i E[x[i]²] / s[i]² Σ_i C[i] s[i]²."""
    inputs, costs = np.zeros(len(channels)), np.zeros(len(channels))
    for reader in readers:
        inputs += reader.statistics.importance()
        costs += reader.input_cost
    up, down = np.bincount(channels, inputs, count), np.bincount(channels, costs, count)
    known = (up > 0) & (down > 0)
    logarithms = np.zeros(count)
    if known.any():
        logarithms[known] = 0.25 * (np.log(up[known]) - np.log(down[known]))
        logarithms[known] -= logarithms[known].mean()
    return np.clip(logarithms, -np.log(LARGEST), np.log(LARGEST))


def _loss(terms: Sequence[_Term], columns: _Doubles, sharpness: int) -> tuple[float, _Doubles]:
    """The loss, and its gradient by the logarithm of each column's scale, float64 [K]."""
    total, gradient = 0.0, np.zeros(len(columns))
    for term in terms:
        grown = (columns ** (2 * term.sign)).astype(np.float32).reshape(term.costs.shape)
        scaled = term.squares * grown
        largest = scaled.max(axis=2, keepdims=True)
        powers = np.divide(scaled, largest, out=np.zeros_like(scaled), where=largest > 0)
        for _ in range(sharpness):
            np.square(powers, out=powers)
        sums = np.maximum(powers.sum(axis=2), np.float32(1e-30))
        peaks = largest[:, :, 0] * sums ** np.float32(0.5**sharpness)
        remaining = term.costs / grown
        size, cost = peaks.sum(axis=0, dtype=np.float64), remaining.sum(axis=1)
        total += float(size @ cost)
        shares = np.einsum("tb,tbi->bi", peaks / sums, powers)
        gradient += 2 * term.sign * (shares * cost[:, None] - size[:, None] * remaining).reshape(-1)
    return total, gradient
