"""Rounding the columns of a panel one after another, where each hears of those before it.

`round_columns` and `move_columns` are the specification of the kernels of these names in native/, which are run for
formats that are a scaled grid (`Format.scaled_grid`) and find the same numbers: what a column did is added to the later
ones one product at a time, in order, and products and sums are rounded separately.

All arrays are columns first: W columns of a panel, R rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fewbits import _native
from fewbits.formats import Format
from fewbits.formats.format import Codes, Floats, ScaledGrid

# Beyond this an error is passed on as if it were this large, so that sums of errors stay finite.
LARGEST_ERROR = np.float32(1e18)

# Columns after which what was done is carried over by one matrix product instead of one at a time.
PANEL = 32

Places = npt.NDArray[np.int32]


def round_panel(
    fmt: Format[Any],
    params: Any,
    places: Places,
    aim: Floats,
    target: Floats,
    error: Floats,
    codes: Codes,
    feedback: Floats,
) -> None:
    """`round_columns`, by the kernel where there is one for the format."""
    groups, index = _groups(fmt, places)
    grid = fmt.scaled_grid(params, groups)
    if grid is None:
        round_columns(fmt, params, places, aim, target, error, codes, feedback)
    else:
        square = np.ascontiguousarray(feedback)
        _native.round_columns(aim, target, error, codes, square, LARGEST_ERROR, index, *_as_arguments(grid))


def round_columns(
    fmt: Format[Any],
    params: Any,
    places: Places,
    aim: Floats,
    target: Floats,
    error: Floats,
    codes: Codes,
    feedback: Floats,
) -> None:
    """Round each column to what it should be, given the errors of those before it.

    Args:
        fmt: what to round to.
        params: of R blocks.
        places: int32 [W], where in the block each column lies.
        aim: float32 [W, R], what to round; becomes what was rounded.
        target: float32 [W, R], the weights.
        error: float32 [W, R], becomes target minus decoded, within ±`LARGEST_ERROR`.
        codes: uint8 [W, R], becomes the codes.
        feedback: float32 [W, W], row j: what column j hears of the errors before it.
    """
    for column, place in enumerate(places.tolist()):
        rounded = fmt.round(aim[column][:, None], params, place)
        codes[column] = rounded[:, 0]
        np.subtract(target[column], fmt.decode(rounded, params, place)[:, 0], out=error[column])
        np.clip(error[column], -LARGEST_ERROR, LARGEST_ERROR, out=error[column])
        aim[column + 1 :] += feedback[column + 1 :, column : column + 1] * error[column]


def move_panel(
    fmt: Format[Any],
    params: Any,
    places: Places,
    gradient: Floats,
    values: Floats,
    codes: Codes,
    moved: Floats,
    hessian: Floats,
) -> None:
    """`move_columns`, by the kernel where there is one for the format."""
    groups, index = _groups(fmt, places)
    grid = fmt.scaled_grid(params, groups)
    if grid is None:
        move_columns(fmt, params, places, gradient, values, codes, moved, hessian)
    else:
        square = np.ascontiguousarray(hessian)
        inverse: Floats = np.float32(1) / np.diagonal(square)
        _native.move_columns(gradient, values, codes, moved, square, inverse, index, *_as_arguments(grid))


def move_columns(
    fmt: Format[Any],
    params: Any,
    places: Places,
    gradient: Floats,
    values: Floats,
    codes: Codes,
    moved: Floats,
    hessian: Floats,
) -> None:
    """Move each column's codes to the nearest of where the loss is least, given what those before it did.

    Args:
        fmt: what the codes are of.
        params: of R blocks.
        places: int32 [W], where in the block each column lies.
        gradient: float32 [W, R], H e; becomes that of each column when it was visited.
        values: float32 [W, R], the decoded codes; changed.
        codes: uint8 [W, R]; changed.
        moved: float32 [W, R], becomes what the values were moved by.
        hessian: float32 [W, W].
    """
    inverse = 1 / np.diagonal(hessian)
    for column, place in enumerate(places.tolist()):
        pull = gradient[column] * inverse[column]
        wanted = values[column] + pull
        found = fmt.round(wanted[:, None], params, place)
        decoded = fmt.decode(found, params, place)[:, 0]
        better = np.abs(decoded - wanted) < np.abs(pull)
        moved[column] = np.where(better, decoded - values[column], np.float32(0))
        np.copyto(codes[column], found[:, 0], where=better)
        np.copyto(values[column], decoded, where=better)
        gradient[column + 1 :] -= hessian[column + 1 :, column : column + 1] * moved[column]


def _groups(fmt: Format[Any], places: Places) -> tuple[slice, npt.NDArray[np.int32]]:
    """The groups of a block that columns belong to, and which of these each belongs to."""
    if not fmt.group:
        return slice(0, 1), np.zeros_like(places)
    groups = places // np.int32(fmt.group)
    first = groups.min()
    return slice(int(first), int(groups.max()) + 1), groups - first


def _as_arguments(grid: ScaledGrid) -> tuple[Any, ...]:
    return grid.low, grid.high, grid.zero, grid.levels, grid.codes, grid.scale, grid.minimum
