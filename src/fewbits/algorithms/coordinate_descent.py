"""Coordinate descent: improve codes and scales one at a time under the full quadratic loss.

The loss of a row of weights w whose quantized values are q is e H eᵀ with e = w - q. Moving one value by m
changes it by m² H[j, j] - 2 m g[j], where g = H e is kept up to date; the best code of a column is therefore
the one nearest to q[j] + g[j] / H[j, j]. For fixed codes the values are linear in the scales, so that scales
have a closed form (`LinearPart`). Nothing is taken that doesn't lower the loss. Where rows share scales, what is said
here of a row holds for their band.

Sources: QuantEase, arXiv 2309.01885 (cyclic descent on codes); the closed form of scales between the sweeps
and for the sub-scales of k-quants isn't in it.

All arrays here are columns first, [K, R], so that a column of all rows is contiguous; R counts rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fewbits.algorithms.columns import LARGEST_ERROR, PANEL, move_panel
from fewbits.algorithms.least_squares import least_squares
from fewbits.formats import Format, QTensor
from fewbits.formats.format import Codes, Floats, LinearPart, Params

# Chooses the params and codes of a block anew: weights float32 [R, B] that would be best if they could be
# stored, and the block's Hessian float32 [B, B] -> codes uint8 [R, B] and params of R blocks.
Renewal: TypeAlias = Callable[[Floats, Floats], tuple[Codes, Any]]

# Rows that go through together: per column and NumPy call 16 kB, so that fixed costs are small and a block
# of 32 columns with its gradient stays in a core's level 2 cache.
ROWS = 4096


def descend(
    weight: Floats, start: QTensor, hessian: Floats, sweeps: int = 1, renewal: Renewal | None = None
) -> QTensor:
    """Lower the loss of a quantized matrix.

    Args:
        weight: float32 [N, K], what the values should be.
        start: the quantized matrix, [N, K]; formats that round one column at a time.
        hessian: float32 [K, K], symmetric and positive definite.
        sweeps: how often all columns are visited; 0 returns `start`.
        renewal: what offers each block another start before its scales and columns are improved.

    Returns:
        A QTensor of the same format whose loss is at most that of `start`, row by row.
    """
    if sweeps <= 0:
        return start
    blocks = start.shape[1] // start.format.block_of(start.shape[1])
    codes, params = [], []
    for first in range(0, start.shape[0], ROWS):
        rows = slice(first, first + ROWS)
        of_rows = start.params.take(slice(first * blocks, (first + ROWS) * blocks))
        state = _Rows(weight[rows], start.format, start.codes[rows], of_rows, hessian)
        # Squares of weights beyond 1e18 overflow; then comparisons fail and nothing is moved.
        with np.errstate(over="ignore", invalid="ignore"):
            for _ in range(sweeps):
                state.sweep(renewal)
        codes.append(np.ascontiguousarray(state.codes.T))
        params.append(interleaved(state.params))
    return QTensor(start.format, start.shape, np.concatenate(codes), type(start.params).join(params))


def interleaved(of_columns: list[Any]) -> Any:
    """Params of each block of columns, for R rows, as the params of R rows of blocks, row-major."""
    joined = type(of_columns[0]).join(of_columns)
    return joined.take(
        np.arange(len(getattr(joined, fields(joined)[0].name))).reshape(len(of_columns), -1).T.reshape(-1)
    )


class _Rows:
    """Some rows with their codes and what is left of their error."""

    def __init__(
        self, weight: Floats, fmt: Format[Any], codes: Codes, params: Params, hessian: Floats
    ) -> None:
        self.format, self.hessian = fmt, hessian
        rows, columns = weight.shape
        self.block = fmt.block_of(columns)
        blocks = columns // self.block
        self.codes: Codes = codes.T.copy(order="C")  # changed in place, so it must not be the caller's
        self.params: list[Any] = [params.take(slice(block, None, blocks)) for block in range(blocks)]
        decoded = fmt.decode(codes.reshape(-1, self.block), params).reshape(rows, columns)
        self.values: Floats = np.ascontiguousarray(decoded.T)
        self.error: Floats = np.subtract(weight.T, self.values, order="C")
        np.clip(self.error, -LARGEST_ERROR, LARGEST_ERROR, out=self.error)

    def sweep(self, renewal: Renewal | None) -> None:
        """Visit every block: its renewal, its scales, then its columns."""
        parts = self.format.linear_parts()
        for index, params in enumerate(self.params):
            run = slice(index * self.block, (index + 1) * self.block)
            block = _Block(
                self.format,
                np.ascontiguousarray(self.hessian[run, run]),
                self.hessian[run] @ self.error,
                self.codes[run],
                self.values[run],
                params,
            )
            before = block.values.copy()
            if renewal is not None and len(self.params) > 1:
                block.renew(renewal)
            for part in parts:
                block.refit(part)
            block.move_codes()
            self.params[index] = block.params
            self.error[run] += np.subtract(before, block.values, out=before)


@dataclass
class _Block:
    """One block of columns. `codes` and `values` are views that are changed in place.

    Attributes:
        hessian: float32 [B, B].
        gradient: float32 [B, R], H e at the block's columns, kept up to date by `refit` and `renew`.
        codes: uint8 [B, R].
        values: float32 [B, R], the decoded codes.
        params: of R blocks.
    """

    format: Format[Any]
    hessian: Floats
    gradient: Floats
    codes: Codes
    values: Floats
    params: Any

    def refit(self, part: LinearPart[Any]) -> None:
        """Solve for the scales of `part` with the codes fixed; keep them in rows where that's better."""
        columns = part.columns
        codes = self.codes[columns].T
        terms = [np.ascontiguousarray(term.T) for term in part.terms(codes, self.params)]
        hessian, gradient = self.hessian[columns, columns], self.gradient[columns]
        responses = [hessian @ term for term in terms]
        steps = least_squares(terms, responses, gradient, self._dot, singular=1e-5)
        moved = tuple(old + step for old, step in zip(part.coefficients(self.params), steps, strict=True))
        params = part.replace(self.params, moved)
        first = columns.indices(len(self.codes))[0]
        change = self.format.decode(codes, params, first).T - self.values[columns]
        response = hessian @ change
        better = 2 * self._dot(change, gradient) - self._dot(change, response) > 0
        change = np.where(better, change, np.float32(0))
        self.values[columns] += change
        self.gradient -= self.hessian[:, columns] @ change
        self.params = chosen(better, params, self.params)

    def renew(self, renewal: Renewal) -> None:
        """Take another choice of scales and codes in rows where it is better.

        With the other blocks as they are, the loss is (q - t) H (q - t)ᵀ with t = values + H⁻¹ gradient.
        """
        shift = np.linalg.solve(self.hessian.astype(np.float64), self.gradient.astype(np.float64))
        wanted = self.values + shift.astype(np.float32)
        codes, params = renewal(np.ascontiguousarray(wanted.T), self.hessian)
        change = self.format.decode(codes, params).T - self.values
        response = self.hessian @ change
        better = 2 * self._dot(change, self.gradient) - self._dot(change, response) > 0
        np.add(self.values, change, out=self.values, where=better)
        np.copyto(self.codes, codes.T, where=better)
        np.subtract(self.gradient, response, out=self.gradient, where=better)
        self.params = chosen(better, params, self.params)

    def move_codes(self) -> None:
        """Visit the columns in order; `gradient` is not kept up to date."""
        moved = np.empty_like(self.values)
        places = np.arange(len(self.values), dtype=np.int32)
        for start in range(0, len(self.values), PANEL):
            panel = slice(start, start + PANEL)
            if start:
                self.gradient[panel] -= self.hessian[panel, :start] @ moved[:start]
            state = self.gradient[panel], self.values[panel], self.codes[panel], moved[panel]
            move_panel(self.format, self.params, places[panel], *state, self.hessian[panel, panel])

    def _dot(self, left: Floats, right: Floats) -> Floats:
        """Sums over the columns of rows, or over those of bands that share parameters, float32 [R]."""
        return self.format.over_bands(np.einsum("br,br->r", left, right))


def chosen(better: npt.NDArray[np.bool_], yes: Any, no: Any) -> Any:
    """Params of each block from `yes` where `better` [R], else from `no`."""
    return type(no)(
        *(
            np.where(better.reshape(-1, *(1,) * (old.ndim - 1)), new, old)
            for new, old in ((getattr(yes, f.name), getattr(no, f.name)) for f in fields(no))
        )
    )
