"""The second moment of a map's inputs made positive definite, and its factors for rounding with feedback."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from fewbits.errors import FewbitsError
from fewbits.formats.format import Floats

# Keeps columns that no token used from making the matrix singular.
LEAST_DAMP = 1e-6
# Up to so many columns LAPACK factors a matrix whole; larger ones go in panels, in place.
_WHOLE, _PANEL = 2048, 512

# Row j of the unit lower triangle L holds what column j hears of the errors before it; D is what its own cost.
Factors = tuple[Floats, Floats]


def regularised(second_moment: Floats, shrink: float, damp: float) -> Floats:
    """The Hessian that is used: mean of the diagonal about 1, off-diagonal shrunk, diagonal raised.

    Args:
        second_moment: float32 [K, K]; columns that no token used are zero.
        shrink: share of the off-diagonal that is taken away.
        damp: added to the diagonal, as a share of its mean.

    Returns:
        float32 [K, K], symmetric; the identity if `second_moment` is zero.

    Raises:
        FewbitsError: the second moment isn't finite.
    """
    diagonal = np.diagonal(second_moment).astype(np.float64)
    mean = diagonal.mean()
    if not np.isfinite(second_moment).all():
        raise FewbitsError(
            "the calibration statistics of a layer aren't finite", action="Delete them and calibrate again."
        )
    if mean <= 0:
        return np.eye(len(diagonal), dtype=np.float32)
    hessian: Floats = second_moment.astype(np.float32)
    hessian *= np.float32((1 - shrink) / mean)
    for rows in runs(len(hessian)):
        for columns in runs(rows.stop):
            mirrored = (hessian[rows, columns] + hessian[columns, rows].T) * np.float32(0.5)
            hessian[rows, columns], hessian[columns, rows] = mirrored, mirrored.T
    np.fill_diagonal(hessian, np.maximum(diagonal, 0) / mean + max(damp, LEAST_DAMP))
    return hessian


def factor(
    hessian: Floats, order: npt.NDArray[np.intp], dtype: type[np.floating[Any]] = np.float64
) -> Factors:
    """H = Lᵀ D L with L unit lower triangular; a matrix that isn't positive definite gets more damping.

    Args:
        hessian: float32 [K, K], symmetric.
        order: intp [K], the columns in the order of H's.
        dtype: what is computed in.

    Returns:
        L float32 [K, K] and D float32 [K], positive.
    """
    damp = 0.0
    while True:
        # Of the last column first: Cholesky's triangle is then the one that errors go through in order.
        root = _ordered(hessian, order[::-1], dtype)
        np.fill_diagonal(root, np.diagonal(root) + damp)
        try:
            root = cholesky(root)
            break
        except np.linalg.LinAlgError:
            damp = max(10 * damp, 1e-3)
    root = root[::-1, ::-1]
    diagonal = np.diagonal(root).copy()
    lower = np.zeros(hessian.shape, np.float32)
    for rows in runs(len(root)):
        for columns in runs(rows.stop):
            lower[rows, columns] = (root[columns, rows] / diagonal[rows]).T
        lower[rows, rows] = np.tril(lower[rows, rows])
    return lower, (diagonal**2).astype(np.float32)


_last: dict[bytes, Factors] = {}


def factor_once(hessian: Floats, order: npt.NDArray[np.intp]) -> Factors:
    """`factor`, whose result is kept until another matrix comes: pieces of a tensor, and formats, share theirs.

    Of 14,336 columns it takes 10^12 operations and 0.8 GB.
    """
    digest = hashlib.blake2b(np.ascontiguousarray(hessian).data)
    digest.update(np.ascontiguousarray(order).data)
    key = digest.digest()
    found = _last.get(key)
    if found is None:
        _last.clear()
        found = factor(hessian, order)
        _last[key] = found
    return found


def cholesky(matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The lower triangle C of a symmetric matrix C Cᵀ, [K, K]; what stands above its diagonal is undefined.

    Large matrices are replaced, in place: LAPACK by way of NumPy would hold three of them.

    Raises:
        numpy.linalg.LinAlgError: it isn't positive definite.
    """
    if len(matrix) <= _WHOLE:
        return np.linalg.cholesky(matrix)
    for columns in runs(len(matrix)):
        below = slice(columns.start, len(matrix))
        matrix[below, columns] -= matrix[below, : columns.start] @ matrix[columns, : columns.start].T
        corner = np.linalg.cholesky(matrix[columns, columns])
        matrix[columns, columns] = corner
        rest = matrix[columns.stop :, columns]
        rest[:] = rest @ np.linalg.inv(corner).T
    return matrix


def _ordered(hessian: Floats, order: npt.NDArray[np.intp], dtype: type[np.floating[Any]]) -> npt.NDArray[Any]:
    """Rows and columns in another order, in another dtype."""
    found = np.empty(hessian.shape, dtype)
    for rows in runs(len(order)):
        found[rows] = hessian[np.ix_(order[rows], order)]
    return found


def runs(total: int, size: int = _PANEL) -> list[slice]:
    """0 … total in pieces of a size, the last of what is left."""
    return [slice(first, min(first + size, total)) for first in range(0, total, size)]
