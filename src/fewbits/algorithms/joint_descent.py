"""Coordinate descent on codes under the loss of all rows together, not of each by itself.

An error E = W - Q of a map costs 1/2 tr(G E H Eᵀ) nats: H the second moment of its inputs and G [N, N] that of the
gradients at its outputs (K-FAC, arXiv 1503.05671). Where outputs matter together, as the rows of an attention head do,
errors of one row can be made up for in another. Rows and columns are visited in turn; moving the value of row n and
column k by m changes the loss by 1/2 m² G[n, n] H[k, k] - m (G E H)[n, k], so the best code is the one nearest to
q + (G E H)[n, k] / (G[n, n] H[k, k]). (YAQA, arXiv 2505.22988, rounds with feedback of both sides; this is the same
loss, improved from a start that knows of H alone.)

`visit_codes` is the specification of the kernel of that name in native/, which finds the same codes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fewbits import _native
from fewbits.algorithms.columns import LARGEST_ERROR
from fewbits.algorithms.factorization import runs
from fewbits.formats import Format, QTensor
from fewbits.formats.format import Codes, Floats, Params

# Rows whose gradient is made by one matrix product; how far they have moved reaches the others afterwards.
ROWS = 32
# Values of grids that are made at once: 16 MB. So many are kept from sweep to sweep: 64 MB, and as many bytes again.
_GRID_VALUES, _KEPT_VALUES = 1 << 22, 1 << 24


def descend_jointly(
    weight: Floats, start: QTensor, hessian: Floats, outputs: Floats, sweeps: int = 1
) -> QTensor:
    """Lower the loss of a quantized matrix by moving codes; scales stay.

    Args:
        weight: float32 [N, K].
        start: the quantized matrix, [N, K].
        hessian: float32 [K, K], symmetric and positive definite.
        outputs: float32 [N / B, B, B], G within blocks of B neighbouring rows, symmetric, positive semidefinite.
        sweeps: how often all codes are visited.

    Returns:
        A QTensor with the same params whose loss is at most that of `start`; `start` itself if the format's codes
        can't be tried one by one.
    """
    if not start.format.codes or sweeps <= 0:
        return start
    size = outputs.shape[1]
    pieces = [
        _descend(weight[rows], start, rows, hessian, block, sweeps)
        for block, rows in zip(outputs, runs(len(weight), size), strict=True)
    ]
    return QTensor(start.format, start.shape, np.concatenate(pieces), start.params)


def _descend(
    weight: Floats, start: QTensor, rows: slice, hessian: Floats, outputs: Floats, sweeps: int
) -> Codes:
    """The codes of one block of rows: uint8 [B, K]."""
    fmt, columns = start.format, start.shape[1]
    blocks = columns // fmt.block_of(columns)
    params = start.params.take(slice(rows.start * blocks, rows.stop * blocks))
    codes = start.codes[rows].copy()
    values = fmt.decode(codes.reshape(-1, fmt.block_of(columns)), params).reshape(weight.shape)
    error = np.clip(weight - values, -LARGEST_ERROR, LARGEST_ERROR)
    grids = _Grids(fmt, params, (len(weight), columns))
    parts = runs(len(weight), max(1, min(ROWS, _GRID_VALUES // (columns * len(fmt.codes)))))
    ranks = np.concatenate(
        [_ranks(codes[part] - np.uint8(fmt.codes.start), grids.of(part)[1]) for part in parts]
    )
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(sweeps):
            for part in parts:
                pull = (outputs[part] @ error) @ hessian
                before, response = values[part].copy(), np.zeros_like(pull)
                among, grid = np.ascontiguousarray(outputs[part, part]), grids.of(part)[0]
                _native.visit_codes(values[part], ranks[part], grid, pull, among, hessian, response)
                error[part] -= values[part] - before
    for part in parts:
        codes[part] = _codes(ranks[part], grids.of(part)[1]) + np.uint8(fmt.codes.start)
    return codes


def _codes(ranks: Codes, order: Codes) -> Codes:
    """What stands at these positions [R, K] of the grids: uint8 [R, K], less the first code."""
    grouped = ranks.reshape(*order.shape[:2], -1).astype(np.intp)
    return np.take_along_axis(order, grouped, 2).reshape(ranks.shape)


def _ranks(codes: Codes, order: Codes) -> Codes:
    """The inverse of `_codes`."""
    place = np.empty_like(order)
    np.put_along_axis(place, order.astype(np.intp), np.arange(order.shape[2], dtype=np.uint8)[None, None], 2)
    return _codes(codes, place)


class _Grids:
    """The sorted grids of R rows, made once if they aren't too many."""

    def __init__(self, fmt: Format[Any], params: Params, shape: tuple[int, int]) -> None:
        self._format, self._params, self._shape = fmt, params, shape
        groups = shape[1] // (fmt.group or fmt.block_of(shape[1]))
        few = shape[0] * groups * len(fmt.codes) <= _KEPT_VALUES
        self._all = sorted_grids(fmt, params, shape) if few else None

    def of(self, rows: slice) -> tuple[Floats, Codes]:
        """As `sorted_grids` of some rows."""
        if self._all is not None:
            return self._all[0][rows], self._all[1][rows]
        columns = self._shape[1]
        blocks = columns // self._format.block_of(columns)
        of_rows = self._params.take(slice(rows.start * blocks, rows.stop * blocks))
        return sorted_grids(self._format, of_rows, (rows.stop - rows.start, columns))


def sorted_grids(fmt: Format[Any], params: Params, shape: tuple[int, ...]) -> tuple[Floats, Codes]:
    """The values that the codes of each group can take, rising, and the code of each less the first code.

    Args:
        fmt: a format with `codes`.
        params: of the blocks of R rows.
        shape: R, K.

    Returns:
        float32 and uint8 [R, K / g, C], where g columns share a grid of C values.
    """
    block = fmt.block_of(shape[1])
    group = fmt.group or block
    columns = np.arange(0, block, group)
    blocks = shape[0] * shape[1] // block
    grids = np.empty((blocks, len(columns), len(fmt.codes)), np.float32)
    for place, code in enumerate(fmt.codes):
        same = np.full((blocks, 1), code, np.uint8)
        for index, column in enumerate(columns.tolist()):
            grids[:, index, place] = fmt.decode(same, params, column)[:, 0]
    order = np.argsort(grids, axis=2, kind="stable")
    shaped = (shape[0], shape[1] // group, len(fmt.codes))
    return np.take_along_axis(grids, order, 2).reshape(shaped), order.astype(np.uint8).reshape(shaped)


def visit_codes(
    values: Floats,
    ranks: Codes,
    grids: Floats,
    gradient: Floats,
    outputs: Floats,
    hessian: Floats,
    response: Floats,
) -> int:
    """One visit to each code of R rows, rows and columns in order; the specification of the kernel.

    Args:
        values: float32 [R, K], what the codes stand for; changed.
        ranks: uint8 [R, K], the position of each value in its grid; changed.
        grids: float32 [R, K / g, C], rising.
        gradient: float32 [R, K], (G E H) of these rows; changed.
        outputs: float32 [R, R], G among these rows; rows with 0 on the diagonal are left alone.
        hessian: float32 [K, K], positive on the diagonal.
        response: float32 [R, K], zeros; becomes minus what was moved, times H.

    Returns:
        How many codes were moved.
    """
    moved = 0
    group = values.shape[1] // grids.shape[1]
    for row in range(len(values)):
        curvature = outputs[row, row]
        if not curvature > 0:
            continue
        for earlier in range(row):
            if outputs[row, earlier] != 0:
                gradient[row] += outputs[row, earlier] * response[earlier]
        for column in range(values.shape[1]):
            slope = gradient[row, column] + curvature * response[row, column]
            wanted = values[row, column] + slope / (curvature * hessian[column, column])
            grid, rank = grids[row, column // group], int(ranks[row, column])
            distances = np.abs(wanted - grid)
            if not distances.min() < distances[rank]:
                continue
            ties = np.flatnonzero(distances == distances.min())
            nearest = int(ties[np.abs(ties - rank).argmin()])
            step = grid[nearest] - values[row, column]
            values[row, column], ranks[row, column] = grid[nearest], nearest
            response[row] += -step * hessian[column]
            moved += 1
    return moved
