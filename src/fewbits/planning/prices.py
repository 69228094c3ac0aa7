"""What each format of a tensor costs, in nats of KL divergence per token, measured on a sample of its rows.

The price is the predicted KL (see `calibration.statistics`) of the error that the format leaves on the rows of a
sample, each row counted by the inverse of its chance of being drawn. Rows are drawn in proportion to a forecast
of their loss, which all formats share; that makes 32 rows of a matrix enough.

The algorithm that will quantize the tensor is what is run, on most formats. Rounding alone misjudges tensors
against each other (GPTQ's loss is a third to two thirds of it), and rounding times the gain on one format
misjudges formats.

What the runtime loses by rounding activations is priced in `activation_prices`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fewbits.algorithms import rtn
from fewbits.calibration.statistics import Statistics, quadratic_loss
from fewbits.checkpoint.checkpoint import LazyTensor
from fewbits.checkpoint.dtypes import decode_plain, encode_plain
from fewbits.formats import Format, QTensor

Floats: TypeAlias = npt.NDArray[np.float32]
Algorithm: TypeAlias = Callable[[Floats, Format[Any], Statistics], QTensor]

SAMPLE_ROWS = 32
CHUNK = 1 << 20  # numbers read at once
_FORECAST_BLOCK = 32
# Share of a row's chance that doesn't depend on the forecast, so that no row is out of reach where it errs.
_FLOOR = 0.1
_FINE_BITS = 8
# How far below and above the budget formats are measured; above it is where the sensitive tensors go.
_BELOW, _ABOVE = 1.0, 1.75
_TINY = 1e-30


@dataclass(frozen=True)
class RowSample:
    """Rows of a matrix that stand for all of it.

    Attributes:
        rows: indices, rising.
        factors: float32, how many rows each one stands for: the inverse of its chance of being drawn.
    """

    rows: npt.NDArray[np.intp]
    factors: Floats


def forecast_losses(weight: Floats, importance: Floats) -> Floats:
    """What rows will lose, up to a factor that they share: squared range of each block times its importance.

    Args:
        weight: float32 [n, K].
        importance: float32 [K], mean square of each input column.

    Returns:
        float32 [n].
    """
    block = _FORECAST_BLOCK if weight.shape[1] % _FORECAST_BLOCK == 0 else weight.shape[1]
    ranges = np.abs(weight).reshape(len(weight), -1, block).max(axis=2)
    forecast: Floats = (ranges * ranges) @ importance.reshape(-1, block).sum(axis=1)
    return forecast


def sample_rows(forecast: Floats, count: int = SAMPLE_ROWS, seed: int = 0) -> RowSample:
    """About `count` rows, drawn without replacement with chances in proportion to `forecast`.

    Systematic sampling (Madow, "On the theory of systematic sampling", 1949): chances are laid end to end and
    cut at a random offset and every whole number after it.

    Args:
        forecast: float [N], not negative.
        count: rows to draw; all are taken, once each, where there are no more.
        seed: of the offset.
    """
    total = len(forecast)
    if total <= count:
        return RowSample(np.arange(total), np.ones(total, dtype=np.float32))
    shares = forecast.astype(np.float64)
    shares = shares / shares.mean() if shares.any() else np.ones(total)
    shares = _FLOOR + (1 - _FLOOR) * shares
    chance = count * shares / shares.sum()
    while (over := chance > 1).any():
        # A row that would be drawn more than once is taken for sure, and the others share what is left.
        sure = over | (chance == 1)
        chance = (count - sure.sum()) * shares / shares[~sure].sum()
        chance[sure] = 1
    ends = np.cumsum(chance) + np.random.default_rng(seed).random()
    drawn = np.floor(ends) > np.floor(np.concatenate([[ends[0] - chance[0]], ends[:-1]]))
    drawn |= chance == 1  # rounding of the sums must not lose one
    rows = np.flatnonzero(drawn)
    return RowSample(rows, (1 / chance[rows]).astype(np.float32))


def sample_tensor(
    source: LazyTensor, statistics: Statistics, count: int = SAMPLE_ROWS, seed: int = 0
) -> tuple[Floats, RowSample]:
    """The rows to price a tensor by, read from the checkpoint: two passes, the second over the drawn rows only.

    Args:
        source: a matrix [N, K] of the map that `statistics` belongs to.
        statistics: of this map.
        count: rows to draw.
        seed: as in `sample_rows`.

    Returns:
        float32 [n, K] and which rows they are.
    """
    importance = statistics.importance()
    forecast = np.concatenate([forecast_losses(chunk, importance) for chunk in source.chunks(CHUNK)])
    sample = sample_rows(forecast * statistics.row_importance, count, seed)
    return np.concatenate([source.rows(r, r + 1) for r in map(int, sample.rows)]), sample


def measured_formats(formats: Sequence[Format[Any]], near: float | None = None) -> list[Format[Any]]:
    """The formats to run the algorithm on; the others follow from these, see `price_tensor`.

    Left out are those of 8 bits and more, whose price hardly matters, and those with an offset that have a
    sibling that is measured, of the same kind and up to a bit away: their gains are alike.

    Args:
        formats: those that need a price.
        near: bits per weight of the budget, where it is known: formats far from it are left out too, because
            few tensors get them.
    """
    if near is not None:
        formats = [f for f in formats if near - _BELOW <= f.bits <= near + _ABOVE] or formats
    measured: list[Format[Any]] = []
    for fmt in sorted(formats, key=lambda f: (-f.bits, f.name)):
        if fmt.bits < _FINE_BITS and not any(_alike(m, fmt) for m in measured):
            measured.append(fmt)
    return measured or list(formats)


def _has_offset(fmt: Format[Any]) -> bool:
    """Whether a value is scale times code plus something, rather than scale times code."""
    params = fmt.fit(np.ones((1, fmt.block or _FORECAST_BLOCK), dtype=np.float32))
    return any(len(part.coefficients(params)) > 1 for part in fmt.linear_parts())


def price_tensor(
    weight_rows: Floats,
    sample: RowSample,
    statistics: Statistics,
    formats: Sequence[Format[Any]],
    algorithm: Algorithm,
    *,
    measured: Sequence[Format[Any]] | None = None,
) -> dict[str, float]:
    """Predicted KL divergence in nats per token of the whole tensor in each format.

    Formats that aren't run through `algorithm` get the price of rounding, times what the algorithm gains on a
    sibling that is, or else the least that it gains on any: a price too high costs little, but the knapsack
    seeks out prices that are too low.

    A function of its arguments alone, and they can be pickled: tensors may be priced in any process.

    Args:
        weight_rows: float32 [n, K], the rows of `sample`.
        sample: which rows they are and what each stands for, as `sample_tensor` returns them.
        statistics: of the map.
        formats: those whose block divides K; `options.useful_formats` says which are worth it.
        algorithm: quantizes rows with the map's statistics, e.g. `algorithms.gptq.quantize`.
        measured: those of `formats` to run it on; None for `measured_formats`.

    Returns:
        Format name -> price, and the price of F16.
    """
    weights = statistics.row_importance[sample.rows] * sample.factors
    # The outputs of a sample's rows aren't those that they are correlated with.
    sampled = replace(
        statistics,
        row_importance=weights / max(float(weights.mean()), _TINY),
        outputs=None,
        held_out_outputs=None,
    )
    prices = {"F16": price_plain(weight_rows, sample, statistics, "F16")}
    if not formats:
        return prices
    bound = {f.name: f.prepare([weight_rows]) for f in formats}
    rounded = {
        name: rtn.quantize(weight_rows, fmt, statistics.importance()).dequantize() - weight_rows
        for name, fmt in bound.items()
    }
    judge = _Judge.fair(statistics, list(rounded.values()), weights)
    chosen = list(measured or measured_formats(formats))
    prices |= dict.fromkeys((f.name for f in chosen), 0.0)
    gains = {}
    # Formats of like blocks after one another: GPTQ takes their columns in the same order, and keeps its factors.
    for fmt in sorted(chosen, key=lambda f: (f.block, f.group)):
        error = algorithm(weight_rows, bound[fmt.name], sampled).dequantize() - weight_rows
        prices[fmt.name] = judge.loss(error)
        gains[fmt.name] = prices[fmt.name] / max(judge.loss(rounded[fmt.name]), _TINY)
    for fmt in formats:
        if fmt.name not in gains:
            siblings = [f for f in formats if f.name in gains and _alike(f, fmt)]
            gain = min(gains[f.name] for f in siblings) if siblings else max(gains.values())
            prices[fmt.name] = judge.loss(rounded[fmt.name]) * gain
    return prices


def _alike(one: Format[Any], other: Format[Any]) -> bool:
    """Whether the algorithm gains as much on one as on the other."""
    return type(one) is type(other) and abs(one.bits - other.bits) <= 1 and _has_offset(one)


def price_plain(weight_rows: Floats, sample: RowSample, statistics: Statistics, dtype: str) -> float:
    """Predicted KL divergence in nats per token of the whole tensor in F32, F16 or BF16; arguments as above."""
    weights = statistics.row_importance[sample.rows] * sample.factors
    error = decode_plain(dtype, encode_plain(dtype, weight_rows)) - weight_rows
    return quadratic_loss(error, statistics.second_moment, weights)


@dataclass(frozen=True)
class _Judge:
    """Predicted KL of errors on the sample's rows.

    Attributes:
        moment: float32 [K, K].
        weights: float32 [n], what each row counts.
        correction: factor on all losses.
    """

    moment: Floats
    weights: Floats
    correction: float = 1.0

    def loss(self, error: Floats) -> float:
        """Nats per token of an error float32 [n, K]."""
        return self.correction * quadratic_loss(error, self.moment, self.weights)

    @classmethod
    def fair(cls, statistics: Statistics, rounded: Sequence[Floats], weights: Floats) -> _Judge:
        """A judge that algorithms can't overfit, on tokens held out; by all tokens where none were.

        Algorithms fit the second moment that they see, and how far varies among tensors (by 0.2 in the logarithm
        at 8k tokens). Held-out tokens are fair but few. Plain rounding sees next to nothing of either, so what
        it loses by both moments tells how much harder the held-out tokens happen to be, and is divided out.
        """
        if not (np.isfinite(statistics.held_out).all() and statistics.held_out.any()):
            return cls(statistics.second_moment, weights)
        seen = sum(quadratic_loss(e, statistics.second_moment, weights) for e in rounded)
        held = sum(quadratic_loss(e, statistics.held_out, weights) for e in rounded)
        return cls(statistics.held_out, weights, seen / held if held > 0 and seen > 0 else 1.0)
