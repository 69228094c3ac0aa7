"""GPTQ: round column by column, and let the columns still to come make up for each error.

The loss of a row is e H eᵀ, e = w - q. Factor H = U D Uᵀ with U unit upper triangular; then

    loss = Σ_j D[j] * (e[j] + Σ_{i<j} e[i] U[i, j])²

so a column's best value, given what was done to those before it, is w[j] + Σ_{i<j} e[i] U[i, j], and D[j] is
what its rounding error then costs. This is GPTQ (arXiv 2210.17323) in the form of LDLQ (QuIP, arXiv
2307.13304, theorem 6), which needs one Cholesky factorisation and no inverse: D[j] = 1 / diag(chol(H⁻¹))[j]².

Beyond the paper:
- Scales are fitted when the sweep reaches their block, to the weights as compensated so far, weighted by D.
  Sub-scales of k-quants are fitted once more when it reaches their group.
- The off-diagonal of H is shrunk, because it is estimated from a finite number of tokens.
- Blocks, groups of a block and columns of a group are each processed in order of importance. Nothing moves in
  storage, so that no runtime needs to know.
- Coordinate descent on the loss of all rows together comes last, see `joint_descent`.
- Before it comes coordinate descent row by row, see `coordinate_descent`. In its later sweeps each block may be
  fitted and rounded once more, to what the errors of all other blocks make the best weights for it.

Arrays are columns first, [K, R], as there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from fewbits.algorithms.columns import PANEL, Places, round_panel
from fewbits.algorithms.coordinate_descent import ROWS, descend, interleaved
from fewbits.algorithms.factorization import factor, factor_once, regularised
from fewbits.algorithms.joint_descent import descend_jointly
from fewbits.calibration.statistics import Statistics, joint_loss
from fewbits.formats import Format, QTensor
from fewbits.formats.format import Codes, Floats

NAME = "gptq"

SHRINK = 0.1
DAMP = 0.01
SWEEPS = 1
RENEWALS = 0
# Share of the correlations of outputs that is taken away.
OUTPUT_SHRINK = 0.2
# Columns of a block and no more: their factors aren't worth keeping.
_SMALL = 256

# Options of `quantize` by effort. Further renewals gain less each: 1.8 %, 0.8 %, 0.3 %.
EFFORTS = {"balanced": {"renewals": 1, "joint": 4}, "best": {"renewals": 3, "joint": 10}}


def quantize(
    weight: Floats,
    fmt: Format[Any],
    statistics: Statistics,
    *,
    shrink: float = SHRINK,
    damp: float = DAMP,
    sweeps: int = SWEEPS,
    renewals: int = RENEWALS,
    joint: int = 0,
    by_importance: bool = True,
) -> QTensor:
    """Quantize a matrix so that its outputs stay close, not its weights.

    Args:
        weight: float32 [N, K], finite.
        fmt: prepared for the tensor where it has tensor-wide parameters; one that rounds single columns.
        statistics: of this map; `second_moment` is what is used.
        shrink: share of the off-diagonal that is taken away, 0 … 1.
        damp: what is added to the diagonal, as a share of its mean.
        sweeps: of coordinate descent at the end.
        renewals: further sweeps in which each block is fitted and rounded again; one costs about as much as
            everything before it.
        joint: sweeps of coordinate descent on the loss of all rows together, where it is known; what they find is kept
            if it is better on held-out tokens.
        by_importance: whether the order of columns follows importance, or storage.

    Raises:
        FewbitsError: the second moment isn't finite.
    """
    hessian = regularised(statistics.second_moment, shrink, damp)
    codes, params = _in_one_sweep(weight, hessian, fmt, by_importance)
    start = QTensor(fmt, (weight.shape[0], weight.shape[1]), codes, params)
    improved = descend(weight, start, hessian, sweeps)
    alone = descend(weight, improved, hessian, renewals, partial(_in_one_sweep, fmt=fmt))
    if joint <= 0 or statistics.outputs is None:
        return alone
    outputs = np.stack([regularised(part, OUTPUT_SHRINK, damp) for part in statistics.outputs])
    together = descend_jointly(weight, alone, hessian, outputs, joint)
    losses = [joint_loss(weight - q.dequantize(), statistics, held_out=True) for q in (together, alone)]
    return together if losses[0] < losses[1] else alone


def _in_one_sweep(
    weight: Floats, hessian: Floats, fmt: Format[Any], by_importance: bool = True
) -> tuple[Codes, Any]:
    """Codes uint8 [N, K] and params for weights [N, K] and a positive definite matrix [K, K]."""
    columns = weight.shape[1]
    order = _order(np.diagonal(hessian), fmt, columns) if by_importance else np.arange(columns)
    found = factor if columns <= _SMALL else factor_once
    feedback, cost = found(hessian, order)
    sweep = _Sweep(fmt, fmt.block_of(columns), order, feedback, cost)
    pieces = [sweep.quantize(weight[first : first + ROWS]) for first in range(0, len(weight), ROWS)]
    codes = np.concatenate([codes for codes, _ in pieces])
    return codes, fmt.params_type.join([params for _, params in pieces])


def _order(importance: Floats, fmt: Format[Any], columns: int) -> npt.NDArray[np.intp]:
    """Storage columns in order of processing: blocks, groups and columns, the most important first."""
    block = fmt.block_of(columns)
    group = fmt.group or block
    shaped = importance.reshape(-1, block // group, group)
    blocks = np.argsort(-shaped.sum(axis=(1, 2)), kind="stable")
    groups = np.argsort(-shaped.sum(axis=2), axis=1, kind="stable")
    inside = np.argsort(-shaped, axis=2, kind="stable")
    position = np.arange(columns).reshape(shaped.shape)
    position = np.take_along_axis(position, inside, axis=2)
    position = np.take_along_axis(position, groups[:, :, None], axis=1)
    return position[blocks].reshape(-1)


@dataclass(frozen=True)
class _Sweep:
    """What rounding of all rows shares.

    Attributes:
        block: columns of a block.
        order: intp [K], storage columns in order of processing.
        feedback: float32 [K, K], L of `factorization.factor`, in order of processing.
        cost: float32 [K], D of `factorization.factor`.
    """

    format: Format[Any]
    block: int
    order: npt.NDArray[np.intp]
    feedback: Floats
    cost: Floats

    def quantize(self, weight: Floats) -> tuple[Codes, Any]:
        """Codes uint8 [R, K] and params of rows [R, K]."""
        target: Floats = np.ascontiguousarray(weight.T[self.order])
        error = np.zeros_like(target)
        codes: Codes = np.empty(weight.shape, np.uint8)
        params: list[Any] = [None] * (len(target) // self.block)
        for start in range(0, len(target), self.block):
            run = slice(start, start + self.block)
            aim = target[run] + self.feedback[run, :start] @ error[:start]
            index = int(self.order[start]) // self.block
            found, params[index] = self._block(start, target[run], aim, error[run])
            codes[:, self.order[run]] = found.T
        return codes, interleaved(params)

    def _block(self, start: int, target: Floats, aim: Floats, error: Floats) -> tuple[Codes, Any]:
        """Fit and round the columns of one block; all arrays [B, R].

        Args:
            start: of the block, in order of processing.
            target: the weights.
            aim: the weights after feedback of earlier blocks; becomes what each column was rounded from.
            error: where target minus decoded goes.
        """
        local = (self.order[start : start + self.block] % self.block).astype(np.int32)
        feedback = self.feedback[start : start + self.block, start : start + self.block]
        cost = self.cost[start : start + self.block]
        params = self.format.fit(*_in_storage_order(aim, cost, local))
        codes: Codes = np.empty(target.shape, np.uint8)
        group = self.format.group or self.block
        own = group < self.block
        width = group if own else PANEL
        for first in range(0, self.block, width):
            panel = slice(first, first + width)
            if first:
                aim[panel] += feedback[panel, :first] @ error[:first]
            if own:
                index = int(local[first]) // group
                x, importance = _in_storage_order(aim[panel], cost[panel], local[panel] % group)
                params = self.format.fit_group(x, params, index, importance)
            state = aim[panel], target[panel], error[panel], codes[panel]
            round_panel(self.format, params, local[panel], *state, feedback[panel, panel])
        return codes, params


def _in_storage_order(aim: Floats, cost: Floats, local: Places) -> tuple[Floats, Floats]:
    """Weights [B, R] -> [R, B] and their costs [B], both in storage order."""
    back = np.argsort(local)
    return np.ascontiguousarray(aim[back].T), cost[back]
