"""SignRound: learn by sign-gradient descent which weights to round the other way.

Each weight has two candidates: the code that the start gave it, and the next one on the weight's own side.
Between them lies a boundary, and an offset v in -0.5 … 0.5 steps decides: the code is that of w + v * step. The
offsets follow the sign of the gradient of the layer's loss e H eᵀ, which passes through the rounding as if it
weren't there, by steps that shrink linearly to 0. Rows are independent, so that each keeps its best iterate.

Source: SignRound / AutoRound, arXiv 2309.05516. Deviations, with what they make of the held-out loss (relative to
GPTQ's at effort best, geometric mean of 3 layers of the reference in 2 and 4 bits; the paper's form: 1.000 from
GPTQ's result, which it never improves, and 1.6 from rounding):
- The loss is the quadratic form of all tokens, in closed form, where the paper runs batches through the block.
- Only a gradient counts that is some share, rising to 1, of what makes the other code better by itself; and it is
  averaged over iterations. Without the first all weights move at once, overshoot and come back: 0.957 with both.
- Scales don't follow signs (0.966 and worse), but are solved for between rounds, with one sweep of coordinate
  descent on the codes: 0.948 after one round, 0.944 after two.
- The candidates come from the format's `round`, so that uneven grids need nothing of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fewbits.algorithms import gptq
from fewbits.algorithms.columns import LARGEST_ERROR
from fewbits.algorithms.coordinate_descent import descend
from fewbits.algorithms.factorization import regularised
from fewbits.algorithms.joint_descent import descend_jointly
from fewbits.calibration.statistics import Statistics
from fewbits.formats import Format, QTensor
from fewbits.formats.format import Codes, Floats

NAME = "signround"

ITERATIONS = 200
ROUNDS = 1

# The sum of all steps is twice the way from one end of an offset to the other.
RATE = 2.0
MOMENTUM = 0.85
MARGIN = 0.5

# Weights that are learned together; it bounds memory to about ten float32 arrays of this size.
PIECE = 1 << 21

Start: TypeAlias = Callable[[Floats, Format[Any], Statistics], QTensor]


def _from_gptq(effort: str, rounds: int) -> dict[str, Any]:
    options: Mapping[str, Any] = gptq.EFFORTS[effort]
    return {"start": partial(gptq.quantize, **options), "rounds": rounds}


# Options of `quantize` by effort: from GPTQ's result at the same effort.
EFFORTS = {"balanced": _from_gptq("balanced", 1), "best": _from_gptq("best", 2)}


def quantize(
    weight: Floats,
    fmt: Format[Any],
    statistics: Statistics,
    *,
    start: Start = gptq.quantize,
    iterations: int = ITERATIONS,
    rounds: int = ROUNDS,
    shrink: float = gptq.SHRINK,
    damp: float = gptq.DAMP,
) -> QTensor:
    """Quantize a matrix so that its outputs stay close, by learned rounding.

    Args:
        weight: float32 [N, K], finite.
        fmt: prepared for the tensor where it has tensor-wide parameters; one that rounds single columns.
        statistics: of this map; `second_moment` and, where it is known, `outputs` are what is used.
        start: what gives the first codes and the scales, e.g. `gptq.quantize` or `imatrix.quantize`.
        iterations: of sign-gradient descent in a round; each costs a product [N, K] x [K, K].
        rounds: of learning followed by coordinate descent.
        shrink: share of the second moment's off-diagonal that is taken away, 0 … 1.
        damp: what is added to its diagonal, as a share of its mean.

    Raises:
        FewbitsError: the second moment isn't finite.
    """
    hessian = regularised(statistics.second_moment, shrink, damp)
    outputs = None
    if statistics.outputs is not None:
        outputs = np.stack([regularised(part, gptq.OUTPUT_SHRINK, damp) for part in statistics.outputs])
    return refine(weight, start(weight, fmt, statistics), hessian, outputs, iterations, rounds)


def refine(
    weight: Floats,
    start: QTensor,
    hessian: Floats,
    outputs: Floats | None = None,
    iterations: int = ITERATIONS,
    rounds: int = ROUNDS,
) -> QTensor:
    """Lower the loss of a quantized matrix by learning its rounding, then moving what is left one by one.

    Args:
        weight: float32 [N, K], what the values should be.
        start: the quantized matrix, [N, K].
        hessian: float32 [K, K], symmetric and positive definite.
        outputs: float32 [N / B, B, B], how errors of B neighbouring rows matter together, see `joint_descent`;
            None where each row is by itself. Scales are refitted only there.
        iterations: see `quantize`.
        rounds: see `quantize`.

    Returns:
        A QTensor of the same format whose loss is at most that of `start`, row by row or block of rows by block.
    """
    result = start
    for _ in range(rounds):
        learned = learn(weight, result, hessian, outputs, iterations)
        if outputs is None:
            result = descend(weight, learned, hessian)
        else:
            result = descend_jointly(weight, learned, hessian, outputs)
    return result


def learn(
    weight: Floats,
    start: QTensor,
    hessian: Floats,
    outputs: Floats | None = None,
    iterations: int = ITERATIONS,
) -> QTensor:
    """Choose between two neighbouring codes for each weight, scales as they are; see `refine`."""
    rows, columns = start.shape
    blocks = columns // start.format.block_of(columns)
    step = max(32, PIECE // columns) if outputs is None else outputs.shape[1]
    codes = []
    for index, first in enumerate(range(0, rows, step)):
        part = slice(first, first + step)
        params = start.params.take(slice(first * blocks, (first + step) * blocks))
        piece = QTensor(start.format, (len(start.codes[part]), columns), start.codes[part], params)
        together = None if outputs is None else outputs[index]
        codes.append(_learned(weight[part], piece, hessian, together, iterations))
    return QTensor(start.format, start.shape, np.concatenate(codes), start.params)


def _learned(
    weight: Floats, start: QTensor, hessian: Floats, outputs: Floats | None, iterations: int
) -> Codes:
    """Codes uint8 [R, K] of some rows, at most as lossy as those of `start`."""
    other, jump, boundary = _candidates(weight, start)
    begin: Floats = np.clip(start.dequantize() - weight, -LARGEST_ERROR, LARGEST_ERROR)
    direction = np.sign(jump)
    share = np.ones((1, 1), np.float32) if outputs is None else np.diagonal(outputs)[:, None]
    best = np.zeros(weight.shape, np.bool_)
    offset, average = np.zeros_like(begin), np.zeros_like(begin)
    # Squares of errors beyond 1e18 overflow; then comparisons fail and nothing is taken.
    with np.errstate(over="ignore", invalid="ignore"):
        # Half the gradient at which the other code is as good, all else unchanged: jump² H / 2 + jump g = 0.
        enough = share * np.diagonal(hessian) * np.abs(jump) / 2
        gradient, least = _slope(begin, hessian, outputs)
        for number in range(iterations):
            gone = number / iterations
            average *= np.float32(MOMENTUM)
            average += np.float32(1 - MOMENTUM) * gradient
            pull = average * direction
            pull *= np.abs(pull) > enough * np.float32(MARGIN + (1 - MARGIN) * gone)
            offset -= np.float32(RATE / iterations * (1 - gone)) * np.sign(pull)
            np.clip(offset, -0.5, 0.5, out=offset)
            taken = offset > boundary
            gradient, loss = _slope(np.where(taken, begin + jump, begin), hessian, outputs)
            better = loss < least
            np.copyto(best, taken, where=better[:, None])
            np.copyto(least, loss, where=better)
    return np.where(best, other, start.codes)


def _slope(error: Floats, hessian: Floats, outputs: Floats | None) -> tuple[Floats, Floats]:
    """Half the gradient of the loss, float32 [R, K], and the loss: [R] of each row, or [1] of all rows together."""
    gradient = error @ hessian
    if outputs is None:
        return gradient, np.einsum("rk,rk->r", error, gradient)
    gradient = outputs @ gradient
    return gradient, np.einsum("rk,rk->", error, gradient, dtype=np.float64).reshape(1)


def _candidates(weight: Floats, start: QTensor) -> tuple[Codes, Floats, Floats]:
    """For each weight its other code, how far that is, and where on the way there the boundary lies.

    Returns:
        Codes uint8 [R, K]; their value minus that of the start's, float32 [R, K], 0 where there is no other; and how
        far the weight must be moved to get them, in steps, float32 [R, K], 0 … 0.5, more where there is no other.
    """
    block = start.format.block_of(weight.shape[1])
    near = start.codes.reshape(-1, block)
    values = start.format.decode(near, start.params)
    away = np.clip(weight.reshape(-1, block) - values, -LARGEST_ERROR, LARGEST_ERROR)
    side = np.where(away > 0, np.float32(1), np.float32(-1))
    other, jump = _next_codes(start.format, near, values, side, start.params)
    steps = np.divide(np.abs(away), np.abs(jump), out=np.full_like(away, -1), where=jump != 0)
    # A start that compensates may have given a weight a code that isn't its nearest; it holds on to it narrowly.
    boundary = np.maximum(np.float32(0.5) - steps, np.float32(LEAST_BOUNDARY))
    return other.reshape(start.shape), jump.reshape(start.shape), boundary.reshape(start.shape)


LEAST_BOUNDARY = 0.001

# The search for the next code begins at this share of the group's largest value, below half a step of 8 bits, and
# doubles the distance this often.
FIRST_DISTANCE = np.float32(2.0**-12)
DOUBLINGS = 14


def _next_codes(
    fmt: Format[Any], codes: Codes, values: Floats, side: Floats, params: Any
) -> tuple[Codes, Floats]:
    """The next codes on a side (-1 or 1, float32 [R, B]) and the way to their values; the same codes and 0 at an end.

    While value + distance is rounded back to its code, the boundary lies farther; when it isn't any more, the
    boundary lies between half the distance and the distance, and the next but one code farther than that.
    """
    group = fmt.group or values.shape[1]
    peak = np.abs(values).reshape(len(values), -1, group).max(axis=2)
    distance: Floats = np.repeat(peak * FIRST_DISTANCE, group, axis=1) * side
    found, jump = codes.copy(), np.zeros_like(values)
    with np.errstate(over="ignore"):  # ways so long are not to be gone
        for _ in range(DOUBLINGS):
            tried = fmt.round(np.clip(values + distance, -LARGEST_ERROR, LARGEST_ERROR), params)
            way = fmt.decode(tried, params) - values
            fresh: npt.NDArray[np.bool_] = (jump == 0) & (way * side > 0) & (np.abs(way) < LARGEST_ERROR)
            np.copyto(found, tried, where=fresh)
            np.copyto(jump, way, where=fresh)
            distance = distance * np.float32(2)
    return found, jump
