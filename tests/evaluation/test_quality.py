"""Statistics against plain formulas, one position at a time."""

import math

import numpy as np
import pytest

from fewbits.errors import EvaluationError
from fewbits.evaluation import quality as q


def random_logits(positions, vocabulary, seed=0, noise=0.3):
    rng = np.random.default_rng(seed)
    reference = (3 * rng.standard_normal((positions, vocabulary))).astype(np.float32)
    quantized = (reference + noise * rng.standard_normal(reference.shape)).astype(np.float32)
    return reference, quantized, rng.integers(0, vocabulary, positions)


def softmax(row):
    weights = [math.exp(float(x) - float(row.max())) for x in row]
    return [w / sum(weights) for w in weights]


def test_each_position_is_what_the_definition_says():
    reference, quantized, following = random_logits(13, 41)

    found = q.position_statistics(reference, quantized, following)

    for i, token in enumerate(following):
        p, r = softmax(reference[i]), softmax(quantized[i])
        assert found.kl[i] == pytest.approx(
            sum(a * math.log(a / b) for a, b in zip(p, r, strict=True)), rel=1e-9
        )
        assert found.nll[i] == pytest.approx(-math.log(r[token]), rel=1e-12)
        assert found.nll_reference[i] == pytest.approx(-math.log(p[token]), rel=1e-12)
        assert found.same_top[i] == (p.index(max(p)) == r.index(max(r)))
    assert 0 < found.same_top.sum() < 13


def test_slicing_changes_nothing(monkeypatch):
    logits = random_logits(50, 97)
    whole = q.position_statistics(*logits)
    monkeypatch.setattr(q, "_SLICE", 97 * 7)

    sliced = q.position_statistics(*logits)

    np.testing.assert_array_equal(sliced.kl, whole.kl)
    np.testing.assert_array_equal(sliced.same_top, whole.same_top)


def test_summary_is_llama_perplexity_s():
    """Its formulas work on running sums (kl_divergence in perplexity.cpp); written out here as sums."""
    found = q.position_statistics(*random_logits(500, 30))
    summary = q.quality(found)
    n = 500

    def uncertainty(values):
        mean = sum(values) / n
        return mean, math.sqrt((sum(v * v for v in values) / n - mean * mean) / (n - 1))

    kl, kl_error = uncertainty(found.kl)
    nll, nll_error = uncertainty(found.nll)
    base, base_error = uncertainty(found.nll_reference)
    covariance = (sum(found.nll * found.nll_reference) / n - nll * base) / (n - 1)
    change = [math.exp(-a) - math.exp(-b) for a, b in zip(found.nll, found.nll_reference, strict=True)]
    square, square_error = uncertainty([c * c for c in change])
    same = sum(found.same_top) / n
    expected = {
        "kl_mean": kl,
        "kl_mean_error": kl_error,
        "perplexity": math.exp(nll),
        "perplexity_error": math.exp(nll) * nll_error,
        "perplexity_reference": math.exp(base),
        "perplexity_reference_error": math.exp(base) * base_error,
        "log_perplexity_ratio": nll - base,
        "log_perplexity_ratio_error": math.sqrt(nll_error**2 + base_error**2 - 2 * covariance),
        "top1_agreement": same,
        "top1_agreement_error": math.sqrt(same * (1 - same) / (n - 1)),
        "delta_p_mean": uncertainty(change)[0],
        "delta_p_rms": math.sqrt(square),
        "delta_p_rms_error": 0.5 / math.sqrt(square) * square_error,
    }

    assert {k: getattr(summary, k) for k in expected} == pytest.approx(expected, rel=1e-8)
    assert summary.tokens == n


@pytest.mark.parametrize("n", [1, 2, 99, 100, 6120])
def test_quantile_is_linear_between_neighbours(n):
    values = np.random.default_rng(n).standard_exponential(n)

    value, _ = q.quantile_and_error(values, 0.99)

    assert value == pytest.approx(float(np.quantile(values, 0.99)), rel=1e-12)


def test_quantile_error_is_the_scatter_over_many_draws():
    rng = np.random.default_rng(0)
    draws = [q.quantile_and_error(rng.standard_exponential(2000), 0.99) for _ in range(400)]
    values, errors = np.array(draws).T

    assert np.mean(errors) == pytest.approx(values.std(), rel=0.15)


def test_few_values_have_no_error():
    assert q.mean_and_error(np.arange(10.0)) == (4.5, 0.0)
    assert q.mean_and_error(np.arange(11.0))[1] == pytest.approx(1.0)


def test_a_model_against_itself():
    reference, _, following = random_logits(64, 100)

    summary = q.quality(q.position_statistics(reference, reference, following))

    assert summary.kl_mean == 0
    assert summary.kl_max == 0
    assert summary.top1_agreement == 1
    assert summary.delta_p_rms_error == 0


def test_large_logits_neither_overflow_nor_vanish():
    reference = np.array([[1e4, 0, -1e4]], np.float32)
    quantized = np.array([[0, 1e4, -1e4]], np.float32)

    found = q.position_statistics(reference, quantized, np.array([0]))

    assert found.kl[0] == pytest.approx(1e4)
    assert math.isfinite(q.quality(found).perplexity)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused(which, value):
    logits = random_logits(4, 8)
    logits[which][2, 3] = value

    with pytest.raises(EvaluationError, match=["original", "quantized model"][which]):
        q.position_statistics(*logits)
