"""HQQ: scales and zero points for the least l_p error (p < 1) of the weights, without calibration.

A norm with p < 1 lets a few weights be far off so that most are near. It is minimised by half-quadratic
splitting: with z for the outliers among the errors e = w - q,

    z = sign(e) * max(|e| - |e|^(p-1) / beta, 0)         shrinkage, elementwise
    scales, minimums = least squares of w - z, codes fixed
    codes = nearest to w

and beta grows from round to round, so that z takes less and less away from e.

Source: Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023. Deviations:
- Everything that decoded values are linear in is refitted (`LinearPart`), where HQQ moves the zero point alone;
  so formats without a zero point gain too.
- Errors are measured in units of their block's root mean square: beta means the same for all bits and layers.
- The start is the format's own fit, and each block keeps the round with the least l_p error.

Blocks don't depend on each other, so rows may be processed in any chunks with the same result, if these end where the
format's bands of rows do; the sums of a band are over its rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fewbits.algorithms.coordinate_descent import chosen
from fewbits.algorithms.least_squares import least_squares
from fewbits.formats import Format, QTensor
from fewbits.formats.block_runs import block_runs, joined
from fewbits.formats.format import Codes, Floats, LinearPart

NAME = "hqq"

POWER = 0.7
ROUNDS = 20
BETA = 1.0
GROWTH = 1.1

# Weights that go through together: a few arrays of this size stay in a core's cache.
TILE = 1 << 16


def quantize(
    weight: Floats,
    fmt: Format[Any],
    *,
    power: float = POWER,
    rounds: int = ROUNDS,
    beta: float = BETA,
    growth: float = GROWTH,
) -> QTensor:
    """Quantize a matrix for the least sum of |error|**power.

    Args:
        weight: float32 [N, K], finite; the format's block divides K.
        fmt: prepared for the tensor where it has tensor-wide parameters.
        power: p, more than 0 and at most 1.
        rounds: of shrinkage, least squares and rounding; 0 gives plain rounding.
        beta: weight of the quadratic term in the first round, for errors with a mean square of 1.
        growth: what it is multiplied with from round to round.

    Returns:
        QTensor of shape [N, K], in no block with a larger sum than plain rounding.
    """
    rows, columns = weight.shape
    block = fmt.block_of(columns)
    blocks = weight.reshape(-1, block)
    runs = block_runs(rows, columns // block, fmt, max(1, TILE // block))
    codes, pieces = np.empty(blocks.shape, np.uint8), []
    for run in runs:
        part = _Blocks(blocks[run], fmt, power)
        for number in range(rounds if fmt.linear_parts() else 0):
            part.improve(beta * growth**number)
        codes[run] = part.codes
        pieces.append(part.params)
    return QTensor(fmt, (rows, columns), codes.reshape(rows, columns), joined(pieces, runs, len(blocks), fmt))


class _Blocks:
    """Some blocks [R, B]: the best codes and params so far, and those of the last round."""

    def __init__(self, weight: Floats, fmt: Format[Any], power: float) -> None:
        self.weight, self.format, self.power = weight, fmt, power
        self.params: Any = fmt.fit(weight)
        self.codes = fmt.round(weight, self.params)
        error = self._error(self.codes, self.params)
        # In float64, where squares of any float32 are finite.
        square = np.mean(np.square(error, dtype=np.float64), axis=1, keepdims=True)
        square = fmt.over_bands(square) / fmt.over_bands(np.ones_like(square))
        self._unit: Floats = np.where(square > 0, np.sqrt(square), 1).astype(np.float32)
        self._last, self._last_codes, self._last_error = self.params, self.codes, error
        self._least = self._norm(error)

    def improve(self, beta: float) -> None:
        """One round; where its l_p error is the least so far, it is kept."""
        outliers = self._shrunk(self._last_error, beta)
        params = self._last
        for part in self.format.linear_parts():
            params = self._refit(part, params, outliers)
        self._last, self._last_codes = params, self.format.round(self.weight, params)
        self._last_error = self._error(self._last_codes, params)
        norm = self._norm(self._last_error)
        better = norm < self._least
        self._least = np.where(better, norm, self._least)
        self.codes = np.where(better[:, None], self._last_codes, self.codes)
        self.params = chosen(better, params, self.params)

    def _error(self, codes: Codes, params: Any) -> Floats:
        return self.weight - self.format.decode(codes, params)

    def _norm(self, error: Floats) -> Floats:
        return self.format.over_bands(np.sum(np.abs(error / self._unit) ** np.float32(self.power), axis=1))

    def _shrunk(self, error: Floats, beta: float) -> Floats:
        size = np.abs(error / self._unit)
        with np.errstate(divide="ignore"):  # errors of 0 shrink by infinity, to 0
            left = size - size ** np.float32(self.power - 1) / np.float32(beta)
        shrunk: Floats = np.sign(error) * np.maximum(left, 0) * self._unit
        return shrunk

    def _refit(self, part: LinearPart[Any], params: Any, outliers: Floats) -> Any:
        """Params with the numbers of `part` that fit the weights without their outliers best."""
        columns = part.columns
        codes = self._last_codes[:, columns]
        first = columns.indices(self.weight.shape[1])[0]
        rest = self.weight[:, columns] - outliers[:, columns] - self.format.decode(codes, params, first)
        terms = part.terms(codes, params)
        steps = least_squares(terms, terms, rest, self._dot, singular=1e-9)
        moved = (old + step for old, step in zip(part.coefficients(params), steps, strict=True))
        return part.replace(params, tuple(moved))

    def _dot(self, left: Floats, right: Floats) -> Any:
        """Sums of products over columns in float64, which no float32 overflows: [R, S] -> [R]."""
        return self.format.over_bands(np.multiply(left, right, dtype=np.float64).sum(axis=1))
