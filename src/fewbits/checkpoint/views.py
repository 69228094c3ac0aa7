"""A tensor's numbers as containers want them: reordered, stacked, shifted. All read lazily."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fewbits.checkpoint.checkpoint import Floats, LazyTensor

if TYPE_CHECKING:
    from fewbits.formats.stored_rows import StoredRows

# Rows nearer to each other than this are read in one go, with what lies between.
_GAP = 4
_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Renamed(LazyTensor):
    """The same numbers under another name."""

    base: LazyTensor
    name: str

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Shape of the base."""
        return self.base.shape

    @property
    def dtype(self) -> str:  # type: ignore[override]
        """Stored type of the base."""
        return self.base.dtype

    def rows(self, start: int, stop: int) -> Floats:
        """Rows start … stop as float32 [stop - start, K]."""
        return self.base.rows(start, stop)

    def stored_rows(self, start: int, stop: int) -> StoredRows:
        """Those of the base."""
        return self.base.stored_rows(start, stop)


class _View(LazyTensor):
    def __init__(self, name: str, shape: Sequence[int], dtype: str) -> None:
        self.name = name
        self.shape = tuple(shape)
        self.dtype = dtype


class Permuted(_View):
    """Rows in another order: row i is row ``row_index[i]`` of the base; rows may repeat or be left out.

    Args:
        base: [..., K], seen as a matrix [N, K].
        row_index: integers [M], each in 0 … N - 1.
        name: of the view; default: the base's.
        shape: default: the base's when M = N, otherwise [M, K].
    """

    def __init__(
        self,
        base: LazyTensor,
        row_index: npt.ArrayLike,
        name: str | None = None,
        shape: Sequence[int] | None = None,
    ) -> None:
        n, k = base.matrix
        self.base = base
        self.row_index: npt.NDArray[np.intp] = np.asarray(row_index, np.intp)
        if self.row_index.ndim != 1 or (
            self.row_index.size and not 0 <= self.row_index.min() <= self.row_index.max() < n
        ):
            raise ValueError(f"row_index of {base.name} isn't a vector of rows 0 … {n - 1}")
        m = len(self.row_index)
        super().__init__(name or base.name, shape or (base.shape if m == n else (m, k)), base.dtype)

    def rows(self, start: int, stop: int) -> Floats:
        """Rows start … stop as float32 [stop - start, K]: neighbours in the base are read together."""
        found: Floats = self._gathered(self.base.rows, start, stop)
        return found

    def stored_rows(self, start: int, stop: int) -> StoredRows:
        """The same as the base stores them."""
        found: StoredRows = self._gathered(self.base.stored_rows, start, stop)
        return found

    def _gathered(self, read: Callable[[int, int], npt.NDArray[Any]], start: int, stop: int) -> Any:
        wanted = self.row_index[start:stop]
        order = np.argsort(wanted, kind="stable")
        ordered = wanted[order]
        cuts = np.flatnonzero(np.diff(ordered) > _GAP) + 1
        result = np.empty((len(wanted), self.base.matrix[1]), read(0, 0).dtype)
        for places, group in zip(np.split(order, cuts), np.split(ordered, cuts), strict=True):
            if len(group):
                first = int(group[0])
                result[places] = read(first, int(group[-1]) + 1)[group - first]
        return result


class Stacked(_View):
    """Tensors of one shape along a new first axis, e.g. experts [E, N, K]; or any tensors of equal K."""

    def __init__(self, parts: Sequence[LazyTensor], name: str, shape: Sequence[int] | None = None) -> None:
        if not parts or len({p.matrix[1] for p in parts}) > 1:
            raise ValueError(f"{name} can't be stacked from rows of {sorted({p.matrix[1] for p in parts})}")
        if shape is None and len({p.shape for p in parts}) > 1:
            raise ValueError(f"{name} can't be stacked from shapes {sorted({p.shape for p in parts})}")
        self.parts = tuple(parts)
        self.ends = np.cumsum([p.matrix[0] for p in parts])
        super().__init__(name, shape or (len(parts), *parts[0].shape), parts[0].dtype)
        if self.matrix != (int(self.ends[-1]), parts[0].matrix[1]):
            raise ValueError(f"{name} of shape {self.shape} can't be stacked from {self.ends[-1]} rows")

    def rows(self, start: int, stop: int) -> Floats:
        """Rows start … stop as float32 [stop - start, K], across the parts."""
        pieces = [part.rows(first, last) for part, first, last in self._parts_of(start, stop)]
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.empty((0, self.matrix[1]), np.float32)

    def stored_rows(self, start: int, stop: int) -> StoredRows:
        """The same as a part stores them, where they are of one part."""
        pieces = self._parts_of(start, stop)
        if len(pieces) != 1:
            return self.rows(start, stop)
        part, first, last = pieces[0]
        return part.stored_rows(first, last)

    def _parts_of(self, start: int, stop: int) -> list[tuple[LazyTensor, int, int]]:
        """The parts that hold rows start … stop, and which rows of each."""
        begins = [int(end) - part.matrix[0] for part, end in zip(self.parts, self.ends, strict=True)]
        return [
            (part, max(start, begin) - begin, min(stop, int(end)) - begin)
            for part, begin, end in zip(self.parts, begins, self.ends, strict=True)
            if start < end and stop > begin
        ]


class RowRange(_View):
    """Rows start … stop of the base's matrix, e.g. one of the projections in a fused weight."""

    def __init__(
        self,
        base: LazyTensor,
        start: int,
        stop: int,
        name: str | None = None,
        shape: Sequence[int] | None = None,
    ) -> None:
        n, k = base.matrix
        if not 0 <= start <= stop <= n:
            raise ValueError(f"rows {start} … {stop} of {base.name}, which has {n}")
        self.base, self.start = base, start
        super().__init__(name or base.name, shape or (stop - start, k), base.dtype)

    def rows(self, start: int, stop: int) -> Floats:
        """Rows start … stop of the range as float32 [stop - start, K]."""
        return self.base.rows(self.start + start, self.start + stop)

    def stored_rows(self, start: int, stop: int) -> StoredRows:
        """The same as the base stores them."""
        return self.base.stored_rows(self.start + start, self.start + stop)


class Shifted(_View):
    """The base plus a constant: Gemma stores the weights of its norms less 1."""

    def __init__(self, base: LazyTensor, constant: float, name: str | None = None) -> None:
        self.base, self.constant = base, np.float32(constant)
        super().__init__(name or base.name, base.shape, base.dtype)

    def rows(self, start: int, stop: int) -> Floats:
        """Rows start … stop plus the constant, float32 [stop - start, K]."""
        values = self.base.rows(start, stop)
        values += self.constant
        return values


class Rescaled(_View):
    """The base's rows and columns times constants: for vectors after an offset is added and before it is taken away.

    Args:
        base: [..., K], seen as a matrix [N, K].
        rows: float32 [N], or for vectors of each element, [K]; None for ones.
        columns: pairs of (first row, float32 [K]), rising: the factors from this row on; () for ones.
        offset: of vectors.
    """

    def __init__(
        self,
        base: LazyTensor,
        rows: Floats | None,
        columns: Sequence[tuple[int, Floats]] = (),
        offset: float = 0.0,
    ) -> None:
        self.base, self.factors, self.columns, self.offset = base, rows, tuple(columns), offset
        super().__init__(base.name, base.shape, base.dtype)

    def rows(self, start: int, stop: int) -> Floats:
        """Rows start … stop, rescaled, float32 [stop - start, K]."""
        values = self.base.rows(start, stop)
        if len(self.shape) < 2:
            if self.factors is not None and len(values):
                wide = (values.astype(np.float64) + self.offset) * self.factors - self.offset
                values = wide.astype(np.float32)
            return values
        starts = [first for first, _ in self.columns]
        for (first, factors), end in zip(self.columns, [*starts[1:], self.matrix[0]], strict=False):
            values[max(first - start, 0) : max(end - start, 0)] *= factors
        if self.factors is not None:
            values *= self.factors[start:stop, None]
        return values


class Reshaped(_View):
    """The same numbers in the same order, in another shape."""

    def __init__(self, base: LazyTensor, shape: Sequence[int], name: str | None = None) -> None:
        if prod(shape) != prod(base.shape):
            raise ValueError(f"{base.name} of shape {base.shape} doesn't fit the shape {tuple(shape)}")
        self.base = base
        super().__init__(name or base.name, shape, base.dtype)

    def rows(self, start: int, stop: int) -> Floats:
        """Rows start … stop as float32 [stop - start, K], from the rows of the base that hold them."""
        k, base_k = self.matrix[1], self.base.matrix[1]
        if k == base_k:
            return self.base.rows(start, stop)
        if start >= stop:
            return np.empty((0, k), np.float32)
        first, last = start * k // base_k, -(-stop * k // base_k)
        skipped = start * k - first * base_k
        values = self.base.rows(first, last).reshape(-1)
        return values[skipped : skipped + (stop - start) * k].reshape(stop - start, k).copy()


class Transposed(_View):
    """The transpose of a matrix. Every call reads the whole base, a piece at a time: ask for many rows."""

    def __init__(self, base: LazyTensor, name: str | None = None) -> None:
        if len(base.shape) != 2:
            raise ValueError(f"{base.name} of shape {base.shape} is not a matrix")
        self.base = base
        super().__init__(name or base.name, base.shape[::-1], base.dtype)

    def rows(self, start: int, stop: int) -> Floats:
        """Columns start … stop of the base as float32 [stop - start, K]."""
        result = np.empty((stop - start, self.shape[1]), np.float32)
        done = 0
        for piece in self.base.chunks(_ELEMENTS):
            result[:, done : done + len(piece)] = piece[:, start:stop].T
            done += len(piece)
        return result
