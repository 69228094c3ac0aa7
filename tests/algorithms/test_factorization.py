"""Second moments made positive definite, and their factors: large ones in panels, and kept for who comes next."""

import numpy as np
import pytest

from fewbits.algorithms import factorization
from fewbits.algorithms.factorization import cholesky, factor, factor_once, regularised

WIDTH = 100


@pytest.fixture(params=["whole", "in panels"])
def _panels(request, monkeypatch):
    if request.param == "in panels":
        monkeypatch.setattr(factorization, "_WHOLE", 16)
        monkeypatch.setattr(factorization, "_PANEL", 24)


def second_moment(tokens=60, seed=0):
    inputs = np.random.default_rng(seed).standard_normal((tokens, WIDTH)).astype(np.float32)
    return inputs.T @ inputs


@pytest.mark.usefixtures("_panels")
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_factors_give_the_matrix_in_order(dtype):
    hessian = regularised(second_moment(), 0.1, 0.01)
    order = np.random.default_rng(1).permutation(WIDTH)
    lower, cost = factor(hessian, order, dtype)

    assert lower.dtype == cost.dtype == np.float32
    assert np.array_equal(lower, np.tril(lower))
    assert (np.diagonal(lower) == 1).all()
    assert (cost > 0).all()
    wide = lower.astype(np.float64)
    assert np.allclose(wide.T * cost @ wide, hessian[np.ix_(order, order)], atol=2e-6)


@pytest.mark.usefixtures("_panels")
def test_a_matrix_that_is_not_positive_definite_gets_more_damping():
    hessian = regularised(second_moment(), 0.0, 0.0)
    hessian[3, 3] = -0.005
    lower, cost = factor(hessian, np.arange(WIDTH))

    assert np.isfinite(lower).all()
    assert (cost > 0).all()
    with pytest.raises(np.linalg.LinAlgError):
        cholesky(hessian.astype(np.float64))


@pytest.mark.usefixtures("_panels")
def test_the_regularised_matrix_is_symmetric_with_a_mean_diagonal_of_one():
    lopsided = second_moment()
    lopsided[:50, 50:] *= 1.5
    found = regularised(lopsided, 0.25, 0.01)
    mean = np.diagonal(lopsided).mean()

    assert np.array_equal(found, found.T)
    assert np.diagonal(found).mean() == pytest.approx(1.01, rel=1e-5)
    assert np.allclose(found[:50, 50:], 0.75 * 1.25 / 1.5 * lopsided[:50, 50:] / mean, rtol=1e-4)
    assert np.array_equal(regularised(np.zeros((5, 5), np.float32), 0.1, 0.01), np.eye(5))


def test_factors_are_kept_for_the_same_matrix_in_the_same_order(monkeypatch):
    calls = []
    monkeypatch.setattr(factorization, "factor", lambda *given: calls.append(given) or factor(*given))
    hessian, order = regularised(second_moment(), 0.1, 0.01), np.arange(WIDTH)
    first = factor_once(hessian, order)

    assert factor_once(hessian.copy(), order.copy()) is first
    assert len(calls) == 1
    other = factor_once(hessian, order[::-1])
    assert len(calls) == 2
    assert not np.array_equal(other[0], first[0])
    changed = hessian.copy()
    changed[0, 0] *= 2
    assert factor_once(changed, order[::-1])[1][-1] > other[1][-1]
    assert len(calls) == 3
