"""Rows of weights as sources hold them: in 32 bits, or in 16, which native code reads as they are."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fewbits.errors import NotFiniteError

# uint16: the bit patterns of bfloat16, which NumPy lacks.
StoredRows: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.float16] | npt.NDArray[np.uint16]


def as_float32(rows: StoredRows) -> npt.NDArray[np.float32]:
    """The same numbers in float32, of the same shape; the same array where they are."""
    if rows.dtype != np.uint16:
        return rows.astype(np.float32, copy=False)
    # A bfloat16 is the upper half of a float32.
    wide = rows.astype(np.uint32)
    wide <<= np.uint32(16)
    return wide.view(np.float32)


def finite_float32(rows: StoredRows, name: str) -> npt.NDArray[np.float32]:
    """The same as `as_float32`, if no number is NaN or infinite.

    Raises:
        NotFiniteError: some are; the message says that the format `name` can't hold them.
    """
    weight = as_float32(rows)
    if not np.isfinite(weight).all():
        raise NotFiniteError(name)
    return weight
