"""Blocks of a matrix that are fitted in one call: any where each row has its own, else bands of a block of columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from fewbits.formats.format import Format


def block_runs(rows: int, blocks: int, fmt: Format[Any], most: int) -> list[slice]:
    """All blocks of a matrix in runs, in an order that `joined` undoes.

    Args:
        rows: of the matrix.
        blocks: of each row; those of a matrix are counted row by row.
        fmt: what they are blocks of.
        most: blocks in a run, at most, unless a band has more.
    """
    if fmt.block_rows == 1:
        return [slice(first, first + most) for first in range(0, max(rows * blocks, 1), most)]
    step = max(fmt.block_rows, most // fmt.block_rows * fmt.block_rows)
    return [
        slice(first * blocks + column, min(first + step, rows) * blocks, blocks)
        for column in range(blocks)
        for first in range(0, max(rows, 1), step)
    ]


def joined(pieces: Sequence[Any], runs: Sequence[slice], blocks: int, fmt: Format[Any]) -> Any:
    """Params of the runs as those of all blocks."""
    whole = fmt.params_type.join(pieces)
    if fmt.block_rows == 1:
        return whole
    order = np.concatenate([np.arange(*run.indices(blocks)) for run in runs])
    return whole.take(np.argsort(order))
