"""An algorithm's result is kept only if it is better on tokens that the algorithm hasn't seen."""

from __future__ import annotations

from fewbits.algorithms import imatrix
from fewbits.algorithms.algorithm import Choice
from fewbits.calibration.statistics import MOST_ROWS, Statistics, joint_loss
from fewbits.formats import QTensor
from fewbits.formats.format import Floats


def checked(result: QTensor, name: str, weight: Floats, statistics: Statistics) -> Choice:
    """Keep `result`, made by the algorithm called `name`, or go back to importance-weighted rounding."""
    loss = held_out_loss(weight, result, statistics)
    baseline = imatrix.quantize(weight, result.format, statistics)
    baseline_loss = held_out_loss(weight, baseline, statistics)
    if loss <= baseline_loss:
        return Choice(result, name, loss, name, loss, baseline_loss)
    return Choice(baseline, imatrix.NAME, baseline_loss, name, loss, baseline_loss)


def held_out_loss(weight: Floats, qtensor: QTensor, statistics: Statistics) -> float:
    """Predicted KL divergence in nats per token on the held-out tokens, of a quantized matrix [N, K]."""
    fmt, (rows, columns) = qtensor.format, qtensor.shape
    block = fmt.block_of(columns)
    blocks = columns // block
    total = 0.0
    for start in range(0, rows, MOST_ROWS):
        part = slice(start, start + MOST_ROWS)
        params = qtensor.params.take(slice(start * blocks, (start + MOST_ROWS) * blocks))
        values = fmt.decode(qtensor.codes[part].reshape(-1, block), params).reshape(-1, columns)
        total += joint_loss(values - weight[part], statistics.of_rows(part), held_out=True)
    return total
