"""The real numbers of one tensor, as factors on what they were.

A quantized matrix with fixed codes is linear in the coefficients of a `LinearPart`:

    weight = Σ_i c_i * exp(f_i) * term_i,    c_i what the coefficients were, f_i the trained logarithms, first 0

Logarithms make a step of training the same change in relation to every scale, whatever its size.

Dimension letters as in `formats.format`: N rows, K columns, R blocks of B columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np

from fewbits.checkpoint.dtypes import Floats
from fewbits.formats import Format, QTensor
from fewbits.formats.format import LinearPart, Params

# Elements whose terms are computed at once.
_ELEMENTS = 1 << 20
# A part can be trained if its numbers, all made a little larger, are stored with less than half of that lost.
_LITTLE = 0.01


def trainable_part(fmt: Format[Any], params: Params) -> int | None:
    """The innermost linear part of whole blocks whose numbers the container holds finely enough; None without one.

    Integers, such as sub-scales and zero points, and powers of two aren't fine enough: rounding would undo training.
    """
    for index, part in enumerate(fmt.linear_parts()):
        if range(*part.columns.indices(fmt.block or 1)) == range(fmt.block or 1) and _is_fine(part, params):
            return index
    return None


def _is_fine(part: LinearPart[Any], params: Params) -> bool:
    """One number at a time: a zero point is stored as a ratio, which all of them together wouldn't change."""
    now = part.coefficients(params)
    for index, sign in product(range(len(now)), (1, -1)):
        little = now[index] * np.float32(sign * _LITTLE)
        wanted = (*now[:index], now[index] + little, *now[index + 1 :])
        stored = part.coefficients(part.replace(params, wanted))
        lost = sum(float(np.abs(f - m).sum(dtype=np.float64)) for m, f in zip(wanted, stored, strict=True))
        if lost > float(np.abs(little).sum(dtype=np.float64)) / 2:
            return False
    return True


class MatrixParameters:
    """The trained parameters of a quantized matrix [N, K]: coefficients of one of its format's linear parts."""

    def __init__(self, qtensor: QTensor, part: int) -> None:
        self.qtensor = qtensor
        self.part = part
        self._part: LinearPart[Any] = qtensor.format.linear_parts()[part]
        self.block = qtensor.format.block_of(qtensor.shape[1])
        self.shape: tuple[int, ...] = qtensor.shape
        self.start: tuple[Floats, ...] = self._part.coefficients(qtensor.params)

    def values(self, logarithms: Sequence[Floats]) -> Floats:
        """The weights, float32 [N, K]; logarithms float32 [R] for each coefficient."""
        rows, columns = self.qtensor.shape
        result = np.empty((rows * columns // self.block, self.block), np.float32)
        now = [c * np.exp(f) for c, f in zip(self.start, logarithms, strict=True)]
        for blocks, terms in self._terms():
            np.multiply(terms[0], now[0][blocks, None], out=result[blocks])
            for coefficient, term in zip(now[1:], terms[1:], strict=True):
                result[blocks] += coefficient[blocks, None] * term
        return result.reshape(rows, columns)

    def gradients(self, slope: Floats, logarithms: Sequence[Floats]) -> tuple[Floats, ...]:
        """Of the logarithms, float32 [R] each, from that of the weights, float32 [N, K]."""
        slopes = slope.reshape(-1, self.block)
        sums = tuple(np.empty(len(slopes), np.float32) for _ in self.start)
        for blocks, terms in self._terms():
            for total, term in zip(sums, terms, strict=True):
                total[blocks] = np.einsum("rb,rb->r", slopes[blocks], term)
        # Where rows share a number, all of them have the gradient that it has.
        shared = (self.qtensor.format.over_bands(s.reshape(self.shape[0], -1)).reshape(-1) for s in sums)
        return tuple(s * c * np.exp(f) for s, c, f in zip(shared, self.start, logarithms, strict=True))

    def rounded(self, logarithms: Sequence[Floats]) -> tuple[Floats, ...]:
        """The coefficients as the container can hold them, float32 [R] each."""
        now = tuple(c * np.exp(f) for c, f in zip(self.start, logarithms, strict=True))
        return self._part.coefficients(self.with_coefficients(now).params)

    def with_coefficients(self, coefficients: tuple[Floats, ...]) -> QTensor:
        """The same codes with other coefficients, rounded to what the container can hold."""
        q = self.qtensor
        return QTensor(q.format, q.shape, q.codes, self._part.replace(q.params, coefficients))

    def _terms(self) -> Iterator[tuple[slice, tuple[Floats, ...]]]:
        codes = self.qtensor.codes.reshape(-1, self.block)
        step = max(1, _ELEMENTS // self.block)
        for first in range(0, len(codes), step):
            blocks = slice(first, first + step)
            yield blocks, self._part.terms(codes[blocks], self.qtensor.params.take(blocks))


class VectorParameters:
    """The numbers of a norm or a bias, float32 [K], each trained in relation to itself."""

    def __init__(self, start: Floats) -> None:
        self.shape = start.shape
        self.start = (start,)

    def values(self, logarithms: Sequence[Floats]) -> Floats:
        """The numbers, float32 [K]."""
        values: Floats = self.start[0] * np.exp(logarithms[0])
        return values

    def gradients(self, slope: Floats, logarithms: Sequence[Floats]) -> tuple[Floats, ...]:
        """Of the logarithms, from that of the numbers: float32 [K] each."""
        return (slope * self.values(logarithms),)
