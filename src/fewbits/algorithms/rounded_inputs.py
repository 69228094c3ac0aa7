"""Weights for inputs that the runtime rounds: their products with the rounded inputs are to be the original's.

With H = E[x xᵀ] and rounding errors that are independent of x and of each other, of variances N (diagonal), what a
map loses whose weight is V instead of W is

    tr((V - W) H (V - W)ᵀ) + tr(V N Vᵀ) = tr((V - T) (H + N) (V - T)ᵀ) + constant        T = W H (H + N)⁻¹

So it is T that is to be quantized, for inputs with the second moment H + N. It pays for inputs that are rounded to 4
bits: directions in which inputs vary less than their rounding errors do carry little but errors.
(Targets from quantized inputs as in GPTAQ, arXiv 2504.02692, and Qronos, arXiv 2505.11695; as an expectation over what
rounding does to a value of its size, where they take the errors of the tokens they saw.)
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from fewbits.algorithms.factorization import LEAST_DAMP
from fewbits.calibration.statistics import (
    Floats,
    Statistics,
    joint_loss,
    mean_square_peaks,
    output_product,
    scaled_inputs,
)
from fewbits.formats.activation_grid import TOKEN, ActivationGrid

_Doubles = npt.NDArray[np.float64]


def input_errors(statistics: Statistics, grid: ActivationGrid, *, held_out: bool = False) -> _Doubles:
    """E[w_t error_tk²] of each input that is rounded to a grid, float64 [K].

    Args:
        statistics: of the map.
        grid: what inputs are rounded to.
        held_out: over the held-out tokens, whose largest inputs are taken to be as those of the others.
    """
    squares = np.diagonal(statistics.held_out if held_out else statistics.second_moment).astype(np.float64)
    error = grid.share_of_own * squares
    width = len(squares)
    size = width if grid.block == TOKEN else grid.block
    if grid.share_of_peak and size and width % size == 0:
        peaks = statistics.peaks.get(size)
        if peaks is None and (inputs := scaled_inputs(statistics)) is not None:
            peaks = mean_square_peaks(inputs, size)
        if peaks is not None:
            seen = np.trace(statistics.second_moment, dtype=np.float64)
            share = float(squares.sum() / seen) if seen > 0 else 0.0
            error += np.repeat(grid.share_of_peak * share * peaks.astype(np.float64), size)
    return error


def for_rounded_inputs(
    weight: Floats, statistics: Statistics, grid: ActivationGrid
) -> tuple[Floats, Statistics]:
    """T and the statistics of rounded inputs, in place of W and those of the inputs.

    Where T would lose more than W on the held-out tokens, W stays, and so do the statistics.

    Args:
        weight: W, float32 [N, K].
        statistics: of these rows.
        grid: what inputs are rounded to.
    """
    errors = input_errors(statistics, grid)
    if not errors.any():
        return weight, statistics
    moment = _raised(statistics.second_moment, errors)
    # W (H + N)⁻¹ N is what T is smaller by: nothing, where rounding costs nothing.
    damped = _raised(moment, np.full(len(errors), LEAST_DAMP * float(np.diagonal(moment).mean())))
    change = np.linalg.solve(damped, (weight * errors.astype(np.float32)).T).T
    target = weight - change
    held_out = input_errors(statistics, grid, held_out=True)
    lost = joint_loss(change, statistics, held_out=True) + _lost_to(held_out, target, statistics)
    if not np.isfinite(lost) or lost >= _lost_to(held_out, weight, statistics):
        return weight, statistics
    return target, replace(statistics, second_moment=moment, held_out=_raised(statistics.held_out, held_out))


def _raised(moment: Floats, diagonal: _Doubles) -> Floats:
    """A moment with something added to its diagonal."""
    raised = moment.copy()
    raised[np.diag_indices(len(raised))] += diagonal.astype(np.float32)
    return raised


def _lost_to(errors: _Doubles, weight: Floats, statistics: Statistics) -> float:
    """1/2 tr(G V N Vᵀ) of the held-out tokens, nats per token; N as `errors` float64 [K]."""
    product = output_product(statistics, weight, held_out=True)
    return 0.5 * float(np.einsum("nk,nk->k", product, weight, dtype=np.float64) @ errors)
