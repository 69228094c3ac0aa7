"""What the runtime's rounding of activations costs with each format of a tensor.

It differs between formats where the runtime rounds their inputs in blocks of different sizes: the larger the block,
the more inputs share the scale of its largest. On a map whose inputs have outliers this can cost more than the
weights do, and a plan that leaves it out takes formats that look better than they are.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from fewbits.calibration.statistics import Statistics, output_product
from fewbits.checkpoint.checkpoint import LazyTensor

# Steps between zero and the largest number of a block of 8-bit activations.
_STEPS = 127
_ROWS = 4096


def price_activations(source: LazyTensor, statistics: Statistics, blocks: Iterable[int]) -> dict[int, float]:
    """Predicted KL divergence in nats per token of rounding the inputs of a map to 8 bits.

    An input is off by a uniformly distributed share of a step, independently of the others, and reaches the output
    through its column of the weight: 1/2 Σ_k E[w_t step_t²] / 12 * (column k)ᵀ E[g gᵀ] (column k).

    Args:
        source: the matrix [N, K], all rows that `statistics` is of.
        statistics: of the map.
        blocks: sizes of blocks of activations that share a scale; 0 for activations that aren't rounded.

    Returns:
        Block size -> price; 0 for sizes that nothing was measured for.
    """
    sizes = [size for size in set(blocks) if size in statistics.peaks]
    prices = dict.fromkeys(blocks, 0.0)
    if not sizes:
        return prices
    columns = _column_losses(source, statistics)
    for size in sizes:
        variance = statistics.peaks[size].astype(np.float64) / (12 * _STEPS**2)
        prices[size] = 0.5 * float(columns.reshape(-1, size).sum(axis=1) @ variance)
    return prices


def _column_losses(source: LazyTensor, statistics: Statistics) -> npt.NDArray[np.float64]:
    """Of each column of the weight, (column)ᵀ E[g gᵀ] (column): float64 [K]."""
    rows, columns = source.matrix
    total = np.zeros(columns)
    for start in range(0, rows, _ROWS):
        weight = source.rows(start, min(start + _ROWS, rows))
        product = output_product(statistics.of_rows(slice(start, start + _ROWS)), weight)
        total += np.einsum("nk,nk->k", product, weight, dtype=np.float64)
    return total
