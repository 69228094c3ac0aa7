"""How much of a tensor's loss descent on all rows together takes away, told from the correlations of its outputs.

With G = U D Uᵀ, U unit upper triangular, rows that are rounded in turn with feedback of the errors before them lose
Σ D of what they lose without, Σ G[n, n] (as with the columns in `algorithms.gptq`). By held-out tokens that share is
tr(U⁻¹ G' U⁻ᵀ) / tr(G'). Descent from a start without feedback gets part of the way there: measured on 7 kinds of
maps of a real model, the held-out share that it leaves is the 0.6th power of that, 0.48 for 0.30, 0.89 for 0.82.
"""

from __future__ import annotations

import numpy as np

from fewbits.algorithms.factorization import factor, regularised
from fewbits.algorithms.gptq import DAMP, OUTPUT_SHRINK
from fewbits.calibration.statistics import Statistics
from fewbits.formats.format import Floats

_PART_OF_THE_WAY = 0.6
# Rows of a matrix that is inverted as it is.
_SMALL = 64


def joint_gain(statistics: Statistics) -> float:
    """Factor on the loss of a map, at most 1; 1 where correlations aren't known."""
    if statistics.outputs is None or statistics.held_out_outputs is None:
        return 1.0
    kept = whole = 0.0
    for outputs, held_out in zip(statistics.outputs, statistics.held_out_outputs, strict=True):
        order = np.argsort(-np.diagonal(outputs).astype(np.float32), kind="stable")
        feedback, _ = factor(regularised(outputs, OUTPUT_SHRINK, DAMP), order, np.float32)
        checked = held_out.astype(np.float32)[np.ix_(order, order)]
        errors = unit_inverse(feedback)
        kept += float(np.einsum("ij,ij->", checked @ errors, errors, dtype=np.float64))
        whole += float(np.trace(checked, dtype=np.float64))
    return min(1.0, kept / whole) ** _PART_OF_THE_WAY if whole > 0 else 1.0


def unit_inverse(lower: Floats) -> Floats:
    """The inverse of a unit lower triangular matrix, float32 [n, n], by halves: what isn't zero costs products only."""
    if len(lower) <= _SMALL:
        return np.linalg.inv(lower)
    half = len(lower) // 2
    inverse = np.zeros_like(lower)
    inverse[:half, :half] = unit_inverse(lower[:half, :half])
    inverse[half:, half:] = unit_inverse(lower[half:, half:])
    inverse[half:, :half] = -(inverse[half:, half:] @ (lower[half:, :half] @ inverse[:half, :half]))
    return inverse
