"""Linear maps with inputs that are correlated as a language model's are, and their statistics."""

import numpy as np

from fewbits.calibration.statistics import Statistics


def correlated_map(rows=96, columns=256, tokens=2048, seed=0):
    """A heavy-tailed weight [rows, columns] and statistics of correlated inputs, a quarter of them held out."""
    rng = np.random.default_rng(seed)
    rank = columns // 8
    mixed = rng.standard_normal((tokens, rank)) @ rng.standard_normal((rank, columns)) / rank**0.5
    inputs = (mixed + 0.7 * rng.standard_normal((tokens, columns))) * np.exp(rng.normal(0, 0.7, columns))
    inputs = inputs.astype(np.float32)
    weight = (rng.standard_t(5, (rows, columns)) * 0.02).astype(np.float32)
    importance = np.exp(rng.normal(0, 1, rows)).astype(np.float32)
    return weight, statistics_of(inputs, importance / importance.mean())


def statistics_of(inputs, row_importance):
    """Statistics of inputs float32 [T, K]; the last quarter of the tokens is held out."""
    seen = 3 * len(inputs) // 4
    return Statistics(_moment(inputs[:seen]), row_importance, _moment(inputs[seen:]), seen)


def _moment(inputs):
    return inputs.T @ inputs / np.float32(len(inputs))
