"""What the runtime's rounding of activations costs with each format of a tensor.

It differs between formats where the runtime rounds their inputs in blocks of different sizes: the larger the block,
the more inputs share the scale of its largest. On a map whose inputs have outliers this can cost more than the
weights do, and a plan that leaves it out takes formats that look better than they are.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from fewbits.calibration.statistics import Statistics, mean_square_peaks, output_product, scaled_inputs
from fewbits.checkpoint.checkpoint import LazyTensor
from fewbits.formats.activation_grid import TOKEN, ActivationGrid

_ROWS = 4096
_Doubles = npt.NDArray[np.float64]


def price_activations(
    source: LazyTensor, statistics: Statistics, grids: Iterable[ActivationGrid]
) -> dict[ActivationGrid, float]:
    """Predicted KL divergence in nats per token of rounding the inputs of a map.

    An input is off by a random share of a step, independently of the others, and reaches the output through its
    column of the weight: 1/2 Σ_k E[w_t error_tk²] (column k)ᵀ E[g gᵀ] (column k).

    Args:
        source: the matrix [N, K], all rows that `statistics` is of.
        statistics: of the map.
        grids: what inputs are rounded to.

    Returns:
        Grid -> price; 0 for grids that nothing is known for.
    """
    wanted = set(grids)
    if not wanted:
        return {}
    columns = column_losses(source, statistics)
    return {grid: 0.5 * float(columns @ input_errors(statistics, grid)) for grid in wanted}


def input_errors(statistics: Statistics, grid: ActivationGrid) -> _Doubles:
    """E[w_t error_tk²] of each input that is rounded to a grid, float64 [K]."""
    squares = statistics.importance().astype(np.float64)
    error = grid.share_of_own * squares
    width = len(squares)
    size = width if grid.block == TOKEN else grid.block
    if grid.share_of_peak and size and width % size == 0:
        peaks = statistics.peaks.get(size)
        if peaks is None and (inputs := scaled_inputs(statistics)) is not None:
            peaks = mean_square_peaks(inputs, size)
        if peaks is not None:
            error += np.repeat(grid.share_of_peak * peaks.astype(np.float64), size)
    return error


def column_losses(source: LazyTensor, statistics: Statistics) -> _Doubles:
    """What an error of each input costs, (column)ᵀ E[g gᵀ] (column): float64 [K]."""
    rows, columns = source.matrix
    total = np.zeros(columns)
    for start in range(0, rows, _ROWS):
        weight = source.rows(start, min(start + _ROWS, rows))
        product = output_product(statistics.of_rows(slice(start, start + _ROWS)), weight)
        total += np.einsum("nk,nk->k", product, weight, dtype=np.float64)
    return total
