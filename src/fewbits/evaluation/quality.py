"""How far a quantized model's predictions are from the original's.

The definitions are those of llama.cpp's llama-perplexity (tools/perplexity), so that figures can be
compared with the ones people publish. Over all scored positions i, with P the original's distribution of
the next token, Q the quantized model's, and t the token that comes:

    KL of i             sum over the vocabulary of P * (ln P - ln Q), in nats
    perplexity          exp(mean of -ln Q(t)); of the reference: exp(mean of -ln P(t))
    top-1 agreement     share of positions where P and Q have the same most likely token
    Δp of i             Q(t) - P(t)

Two differences, both small: llama-perplexity keeps the original's log probabilities in 16 bits and leaves
tokens with ln P < -16 out of the sum. Here nothing is rounded and nothing left out.

Standard errors take positions for independent draws, as llama-perplexity does.

Dimension letters: S positions in one call, V tokens in the vocabulary, n positions altogether.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, floor, isfinite, sqrt
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fewbits.errors import EvaluationError

Floats: TypeAlias = npt.NDArray[np.float32]
Doubles: TypeAlias = npt.NDArray[np.float64]
Tokens: TypeAlias = npt.NDArray[np.int64]

# float64 numbers held at once by one of the arrays of `position_statistics`: 16 MB.
_SLICE = 1 << 21
# llama-perplexity gives no error for this many values or fewer.
_FEW = 10


@dataclass(frozen=True)
class PositionStatistics:
    """What is kept of S positions: float64 [S] each, and which of them agree, bool [S].

    Attributes:
        kl: KL divergence in nats.
        nll: -ln Q(t), of the quantized model.
        nll_reference: -ln P(t), of the original.
        same_top: whether both models find the same token most likely.
    """

    kl: Doubles
    nll: Doubles
    nll_reference: Doubles
    same_top: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Quality:
    """Statistics over all scored positions; every `_error` is one standard error.

    Attributes:
        kl_mean: mean KL divergence in nats per token.
        kl_median: its median.
        kl_p99: its 99th percentile.
        kl_max: its largest value.
        perplexity: of the quantized model.
        perplexity_reference: of the original.
        log_perplexity_ratio: ln(perplexity / perplexity_reference); both models read the same text, so its
            error is much smaller than those of the two perplexities.
        top1_agreement: share of positions with the same most likely token, 0 … 1.
        delta_p_mean: mean change of the probability of the token that comes, -1 … 1.
        delta_p_rms: root mean square of that change.
        tokens: positions scored.
    """

    kl_mean: float
    kl_mean_error: float
    kl_median: float
    kl_p99: float
    kl_p99_error: float
    kl_max: float
    perplexity: float
    perplexity_error: float
    perplexity_reference: float
    perplexity_reference_error: float
    log_perplexity_ratio: float
    log_perplexity_ratio_error: float
    top1_agreement: float
    top1_agreement_error: float
    delta_p_mean: float
    delta_p_mean_error: float
    delta_p_rms: float
    delta_p_rms_error: float
    tokens: int


def log_softmax(logits: Floats) -> Doubles:
    """Logarithm of the softmax along the last axis, in float64: float32 [S, V] -> float64 [S, V]."""
    result = logits.astype(np.float64)
    result -= result.max(axis=1, keepdims=True)
    result -= np.log(np.exp(result).sum(axis=1, keepdims=True))
    return result


def position_statistics(reference: Floats, quantized: Floats, following: Tokens) -> PositionStatistics:
    """Compare the two models' predictions at S positions.

    Args:
        reference: logits of the original, float32 [S, V].
        quantized: logits of the quantized model, float32 [S, V].
        following: the token that comes after each position, int64 [S].

    Raises:
        EvaluationError: a model gives a logit that isn't finite.
    """
    positions, vocabulary = reference.shape
    step = max(1, _SLICE // vocabulary)
    pieces = [
        _slice_statistics(reference[s : s + step], quantized[s : s + step], following[s : s + step])
        for s in range(0, positions, step)
    ]
    return join(pieces)


def _slice_statistics(reference: Floats, quantized: Floats, following: Tokens) -> PositionStatistics:
    for which, logits in (("the original", reference), ("the quantized model", quantized)):
        if not np.isfinite(logits).all():
            raise EvaluationError(
                f"the logits of {which} aren't finite",
                found=f"{np.count_nonzero(~np.isfinite(logits))} NaN or infinite in {len(logits)} positions",
                action="The file is damaged, or the model overflows; check it with fewbits inspect",
            )
    log_p, log_q = log_softmax(reference), log_softmax(quantized)
    rows = np.arange(len(following))
    nll, nll_reference = -log_q[rows, following], -log_p[rows, following]
    np.subtract(log_p, log_q, out=log_q)
    np.exp(log_p, out=log_p)
    kl = np.einsum("sv,sv->s", log_p, log_q)
    return PositionStatistics(kl, nll, nll_reference, reference.argmax(axis=1) == quantized.argmax(axis=1))


def join(pieces: list[PositionStatistics]) -> PositionStatistics:
    """The statistics of consecutive runs of positions as one."""
    return PositionStatistics(
        np.concatenate([p.kl for p in pieces]),
        np.concatenate([p.nll for p in pieces]),
        np.concatenate([p.nll_reference for p in pieces]),
        np.concatenate([p.same_top for p in pieces]),
    )


def mean_and_error(values: Doubles) -> tuple[float, float]:
    """Mean of n values and its standard error, sqrt(variance / (n - 1)) with the variance over n.

    The error is 0 for 10 values or fewer, as in llama-perplexity.
    """
    n = len(values)
    return float(values.mean()), sqrt(float(values.var()) / (n - 1)) if n > _FEW else 0.0


def quantile_and_error(values: Doubles, fraction: float) -> tuple[float, float]:
    """A quantile, linear between neighbours, and its standard error from order statistics.

    The number of values below the quantile is binomial with variance n * fraction * (1 - fraction); half
    the distance between the values one standard deviation of rank to either side is the error.
    """
    ordered = np.sort(values)
    last = len(ordered) - 1

    def at(rank: float) -> float:
        rank = min(max(rank, 0.0), float(last))
        below = floor(rank)
        part = rank - below
        return float((1 - part) * ordered[below] + part * ordered[min(below + 1, last)])

    rank = fraction * last
    spread = sqrt(len(ordered) * fraction * (1 - fraction))
    error = (at(rank + spread) - at(rank - spread)) / 2 if len(ordered) > _FEW else 0.0
    return at(rank), error


def quality(positions: PositionStatistics) -> Quality:
    """Summarise n positions; see `Quality`."""
    n = len(positions.kl)
    kl_mean, kl_mean_error = mean_and_error(positions.kl)
    kl_p99, kl_p99_error = quantile_and_error(positions.kl, 0.99)
    nll, nll_error = mean_and_error(positions.nll)
    nll_reference, nll_reference_error = mean_and_error(positions.nll_reference)
    # The error of a mean difference is that of the difference of means with its covariance.
    ratio, ratio_error = mean_and_error(positions.nll - positions.nll_reference)
    same = float(positions.same_top.mean())
    delta_p = np.exp(-positions.nll) - np.exp(-positions.nll_reference)
    delta_mean, delta_mean_error = mean_and_error(delta_p)
    square, square_error = mean_and_error(delta_p**2)
    rms = sqrt(square)
    return Quality(
        kl_mean=kl_mean,
        kl_mean_error=kl_mean_error,
        kl_median=float(np.median(positions.kl)),
        kl_p99=kl_p99,
        kl_p99_error=kl_p99_error,
        kl_max=float(positions.kl.max()),
        perplexity=_exp(nll),
        perplexity_error=_exp(nll) * nll_error,
        perplexity_reference=_exp(nll_reference),
        perplexity_reference_error=_exp(nll_reference) * nll_reference_error,
        log_perplexity_ratio=ratio,
        log_perplexity_ratio_error=ratio_error,
        top1_agreement=same,
        top1_agreement_error=sqrt(same * (1 - same) / (n - 1)) if n > 1 else 0.0,
        delta_p_mean=delta_mean,
        delta_p_mean_error=delta_mean_error,
        delta_p_rms=rms,
        delta_p_rms_error=0.5 / rms * square_error if rms else 0.0,
        tokens=n,
    )


def _exp(mean_nll: float) -> float:
    """Perplexity of a mean negative log likelihood; a broken model's may exceed float64."""
    try:
        value = exp(mean_nll)
    except OverflowError:
        value = np.finfo(np.float64).max
    return value if isfinite(value) else float(np.finfo(np.float64).max)
