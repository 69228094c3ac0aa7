"""Least squares in one or two coefficients, which is what the scales of a block are once its codes are fixed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fewbits.formats.format import Floats


def least_squares(
    terms: Sequence[Floats],
    responses: Sequence[Floats],
    target: Floats,
    dot: Callable[[Floats, Floats], Any],
    *,
    singular: float,
) -> list[Floats]:
    """The x that minimise eᵀ H e for e = w - Σ xᵢ tᵢ, for R problems at once, by the normal equations.

    Args:
        terms: one or two tᵢ, each for all R problems.
        responses: H tᵢ of each term; the terms themselves where H is the identity.
        target: H w.
        dot: the R inner products of two such arrays, in the precision in which the equations are solved.
        singular: share of the product of both diagonal entries up to which the determinant counts as zero;
            the first term is then fitted alone.

    Returns:
        float32 [R] per term; 0 where undetermined or beyond float32.
    """
    a, u = dot(terms[0], responses[0]), dot(terms[0], target)
    alone = np.divide(u, a, out=np.zeros_like(u), where=a > 0)
    if len(terms) == 1:
        return [_finite(alone)]
    b, c, v = dot(terms[0], responses[1]), dot(terms[1], responses[1]), dot(terms[1], target)
    determinant = a * c - b * b
    regular = determinant > singular * a * c
    inverse = np.divide(1.0, determinant, out=np.zeros_like(u), where=regular)
    first = np.where(regular, (c * u - b * v) * inverse, alone)
    return [_finite(first), _finite((a * v - b * u) * inverse)]


def _finite(steps: Any) -> Floats:
    within = np.abs(steps) <= np.finfo(np.float32).max
    return np.where(within, steps, 0).astype(np.float32)
