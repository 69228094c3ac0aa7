"""What calibration knows about the linear maps of a model.

Notation: a linear map z = W x with W [N, K]; over calibration tokens t, x_t is its input and g_t [N] the gradient
of the token's end loss with respect to z_t. The loss is that of labels drawn from the model's own predictions,
so that E[g gᵀ] is the Fisher information, and half its quadratic form is the KL divergence that a small error
causes, in nats per token:

    KL ≈ 1/2 * sum_n row_importance[n] * e_n second_moment e_nᵀ          e = Wq - W

with second_moment = E[w_t x_t x_tᵀ], w_t = mean over n of g_tn², and row_importance scaled to a mean of 1.
(GuidedQuant, arXiv 2505.07004, with one group; the rows' share added as in K-FAC, arXiv 1503.05671.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
OutputMoments = npt.NDArray[np.float16]


# Rows whose correlations are looked at together: 34 MB.
MOST_ROWS = 4096
# Rows of a moment that are rescaled at once.
_ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class Statistics:
    """Of one linear map [N, K].

    Attributes:
        second_moment: float32 [K, K], symmetric, as above; scaled so that the formula above gives nats per token.
        row_importance: float32 [N], mean 1.
        held_out: float32 [K, K], the second moment over tokens that aren't in `second_moment`; for checking.
        tokens: how many tokens are in `second_moment` (for an expert: those routed to it).
        outputs: E[g gᵀ] within blocks of B neighbouring rows, float16 [N / B, B, B], mean diagonal 1; None where it
            isn't known.
        held_out_outputs: the same over the tokens of `held_out`.
        peaks: block size b -> E[w_t max over the block of x_t²], float32 [K / b].
        sample: √w_t x_t of some tokens, float16 [T, K], the largest about 1; None or none where there are no tokens.
        restore: what the samples are multiplied with to be x_t, float32 [T]; 0 where w_t is.
        largest: of each input over all tokens, its largest magnitude, float32 [K].
    """

    second_moment: Floats
    row_importance: Floats
    held_out: Floats
    tokens: int
    outputs: OutputMoments | None = None
    held_out_outputs: OutputMoments | None = None
    peaks: Mapping[int, Floats] = field(default_factory=dict)
    sample: npt.NDArray[np.float16] | None = None
    restore: Floats | None = None
    largest: Floats | None = None

    def of_rows(self, rows: slice | npt.NDArray[np.intp]) -> Statistics:
        """Of some rows of the map.

        Row importance keeps its scale relative to the whole map, so that losses of parts add up. Correlations of
        outputs are kept among the rows, as one block, unless they are too many for one.
        """
        return replace(
            self,
            row_importance=self.row_importance[rows],
            outputs=_among(self.outputs, rows),
            held_out_outputs=_among(self.held_out_outputs, rows),
        )

    def rescaled(self, columns: Floats, rows: Floats | None = None) -> Statistics:
        """Of the map whose weight is this one's times rows[:, None] * columns, in a model that computes the same.

        Its inputs are smaller by `columns`, the gradients at its outputs by `rows`.

        Args:
            columns: float32 [K], not zero.
            rows: float32 [N], not zero; None for ones.
        """
        inverse = 1 / columns.astype(np.float64)
        shrunk: Floats = np.ones_like(self.row_importance) if rows is None else np.reciprocal(rows)
        importance: Floats = self.row_importance * np.square(shrunk)
        mean = float(importance.mean(dtype=np.float64)) or 1.0
        factors = inverse.astype(np.float32)
        sample, peaks, shrunk_by = _rescaled_inputs(self.sample, self.peaks, factors, mean)
        return replace(
            self,
            second_moment=_rescaled_moment(self.second_moment, inverse, mean),
            held_out=_rescaled_moment(self.held_out, inverse, mean),
            row_importance=importance / np.float32(mean),
            outputs=_rescaled_outputs(self.outputs, shrunk, mean),
            held_out_outputs=_rescaled_outputs(self.held_out_outputs, shrunk, mean),
            peaks=peaks,
            sample=sample,
            restore=None if self.restore is None else self.restore * shrunk_by,
            largest=None if self.largest is None else self.largest * np.abs(factors),
        )

    def importance(self) -> Floats:
        """The diagonal of the second moment: the weight of each input column, float32 [K]."""
        return np.ascontiguousarray(np.diagonal(self.second_moment))


def _rescaled_moment(moment: Floats, factors: npt.NDArray[np.float64], mean: float) -> Floats:
    """A moment times mean * factors * factorsᵀ, float32 [K, K], with nothing else of its size in float64."""
    scaled = np.empty_like(moment)
    for start in range(0, len(moment), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        scaled[rows] = moment[rows] * (mean * np.outer(factors[rows], factors)).astype(np.float32)
    return scaled


def _rescaled_outputs(outputs: OutputMoments | None, factors: Floats, mean: float) -> OutputMoments | None:
    if outputs is None:
        return None
    count, size, _ = outputs.shape
    blocks = (factors / np.sqrt(np.float32(mean))).reshape(count, size)
    scaled = outputs.astype(np.float32) * blocks[:, :, None] * blocks[:, None, :]
    result: OutputMoments = np.clip(scaled, -65504, 65504).astype(np.float16)
    return result


def _rescaled_inputs(
    sample: npt.NDArray[np.float16] | None, peaks: Mapping[int, Floats], factors: Floats, mean: float
) -> tuple[npt.NDArray[np.float16] | None, Mapping[int, Floats], np.float32]:
    """Sample and peaks of inputs times `factors` [K], and what the sample was divided by: peaks grow as it does."""
    if sample is None or not len(sample):
        return sample, {size: total * np.float32(mean) for size, total in peaks.items()}, np.float32(1)
    before = sample.astype(np.float32)
    after = before * factors
    found = {}
    for size, total in peaks.items():
        old, new = (mean_square_peaks(x, size) for x in (before, after))
        growth = np.divide(new, old, out=np.ones_like(new), where=old > 0)
        found[size] = total * growth * np.float32(mean)
    largest = float(np.abs(after).max()) or 1.0
    return (after / largest).astype(np.float16), found, np.float32(largest)


def mean_square_peaks(x: Floats, size: int) -> Floats:
    """Mean over tokens of the largest square in each block: float32 [T, K] -> [K / size]."""
    peaks: Floats = np.square(np.abs(x).reshape(len(x), -1, size).max(axis=2)).mean(axis=0)
    return peaks


def scaled_inputs(statistics: Statistics) -> Floats | None:
    """Sampled inputs float32 [T, K], with √w_t, whose mean square is that of all tokens; None without samples."""
    sample = statistics.sample
    if sample is None or not len(sample):
        return None
    x = sample.astype(np.float32)
    found = float(np.square(x).sum(dtype=np.float64)) / len(x)
    whole = float(np.trace(statistics.second_moment, dtype=np.float64))
    return x * np.float32(np.sqrt(whole / found)) if found > 0 and whole > 0 else None


def _among(outputs: OutputMoments | None, rows: slice | npt.NDArray[np.intp]) -> OutputMoments | None:
    """Correlations among some rows, float16 [1, n, n]; None for more than `MOST_ROWS`."""
    if outputs is None:
        return None
    count, size, _ = outputs.shape
    chosen = np.arange(count * size)[rows]
    if len(chosen) > MOST_ROWS:
        return None
    block, place = np.divmod(chosen, size)
    among = np.zeros((len(chosen), len(chosen)), np.float16)
    for index in np.unique(block):
        members = np.flatnonzero(block == index)
        among[np.ix_(members, members)] = outputs[index][np.ix_(place[members], place[members])]
    return among[None]


def joint_loss(error: Floats, statistics: Statistics, *, held_out: bool = False) -> float:
    """Predicted KL divergence in nats per token of an error [N, K] of all rows: 1/2 tr(G E H Eᵀ).

    G is E[g gᵀ] as far as it is known, scaled to a mean diagonal of 1.

    Args:
        error: float32 [N, K], Wq - W.
        statistics: of these rows.
        held_out: by the moments over held-out tokens.
    """
    second_moment = statistics.held_out if held_out else statistics.second_moment
    product = output_product(statistics, error, held_out=held_out)
    return 0.5 * float(np.einsum("nk,nk->", product @ second_moment, error, dtype=np.float64))


def quadratic_loss(error: Floats, second_moment: Floats, row_importance: Floats) -> float:
    """Predicted KL divergence in nats per token of an error Wq - W, float32 [N, K]."""
    per_row = np.einsum("nk,nk->n", error @ second_moment, error, dtype=np.float64)
    return 0.5 * float(per_row @ row_importance.astype(np.float64))


def output_product(statistics: Statistics, error: Floats, *, held_out: bool = False) -> Floats:
    """E[g gᵀ] times a matrix float32 [N, K], by what is known of it: blocks, or the diagonal."""
    outputs = statistics.held_out_outputs if held_out else statistics.outputs
    if outputs is None:
        return statistics.row_importance[:, None] * error
    size = outputs.shape[1]
    pieces = [
        part.astype(np.float32) @ error[start : start + size]
        for part, start in zip(outputs, range(0, len(error), size), strict=True)
    ]
    return np.concatenate(pieces)
