"""The interface between formats and algorithms.

A format says what a block of quantized numbers is; an algorithm says how codes are chosen. They meet in
`fit`, `round` and `decode` only, so N formats and M algorithms are N + M files.

Dimension letters used in this package:
    N rows of a weight (output features; leading dimensions of an expert stack are folded into it)
    K columns of a weight (input features)
    B block: columns that share parameters
    R = N * K / B: blocks of a weight, row-major, so block r covers row r // (K/B)
    S columns rounded together in one call
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import lru_cache
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from fewbits.errors import FormatError
from fewbits.formats.block_runs import block_runs, joined
from fewbits.formats.stored_rows import StoredRows, finite_float32

if TYPE_CHECKING:
    from fewbits.formats.numbers import Numbers

Floats: TypeAlias = npt.NDArray[np.float32]
Codes: TypeAlias = npt.NDArray[np.uint8]
Parts: TypeAlias = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Params:
    """Parameters of R blocks: a frozen dataclass of arrays whose first axis is R.

    Subclasses name their arrays, e.g. one scale per block: ``d: float32 [R]``.
    """

    def take(self, blocks: slice | npt.NDArray[np.intp]) -> Self:
        """The parameters of some of the blocks, as views where NumPy allows it."""
        return type(self)(*(getattr(self, f.name)[blocks] for f in fields(self)))

    @classmethod
    def join(cls, pieces: Sequence[Self]) -> Self:
        """The parameters of consecutive runs of blocks as one."""
        return cls(*(np.concatenate([getattr(p, f.name) for p in pieces]) for f in fields(cls)))


P = TypeVar("P", bound=Params)

# How safetensors calls NumPy's types.
_DTYPES = {
    "uint8": "U8", "int8": "I8", "uint16": "U16", "int32": "I32", "uint32": "U32", "int64": "I64",
    "float16": "F16", "float32": "F32",
}  # fmt: skip
_ITEM_BYTES = {name: np.dtype(held).itemsize for held, name in _DTYPES.items()}
_ITEM_BYTES |= {"BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}


@dataclass(frozen=True)
class PartLayout:
    """One of the container's arrays for a whole tensor, before any number of it is known.

    Attributes:
        dtype: as safetensors calls it.
        shape: of the array.
        rows: how many of its rows hold how many rows of the weight; None if it belongs to the tensor.
        axis: which axis of the array its rows lie along; 1 where the container holds a matrix transposed.
    """

    dtype: str
    shape: tuple[int, ...]
    rows: tuple[int, int] | None
    axis: int = 0

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return prod(self.shape) * _ITEM_BYTES[self.dtype]

    def range(self, start: int, stop: int) -> tuple[int, int]:
        """Its rows that hold rows start … stop of the weight; `start` a multiple of the format's `rows_together`."""
        if self.rows is None:
            return 0, self.shape[self.axis] if self.shape else 1
        held, weights = self.rows
        return start * held // weights, -(-stop * held // weights)


@dataclass(frozen=True)
class LinearPart(Generic[P]):
    """Numbers among the parameters that the decoded values of fixed codes are linear in.

        decode(codes, params) = Σ coefficient * term        up to the rounding of the runtime's own product

    What algorithms need to improve scales after the codes are chosen, by least squares.

    Attributes:
        columns: the columns of a block that these numbers decide.
        coefficients: what the numbers are now, float32 [R] each.
        terms: what each is multiplied by, for the codes uint8 [R, S] of `columns`: float32 [R, S] each.
        replace: params with these numbers instead, rounded to what the container can hold.
    """

    columns: slice
    coefficients: Callable[[P], tuple[Floats, ...]]
    terms: Callable[[Codes, P], tuple[Floats, ...]]
    replace: Callable[[P, tuple[Floats, ...]], P]


@dataclass(frozen=True)
class ScaledGrid:
    """What codes stand for, as data for kernels, in formats that round and decode by one rule.

        level = the nearest one to (x + minimum) / scale, to 0 where scale is 0
        value = level * scale - minimum

    The quotient is a product with the reciprocal, and each operation is rounded to float32.

    Attributes:
        low, high: levels are the integers between, codes are level + zero, unless there are tables.
        zero: code of level 0.
        levels: the level nearest to t at floor(2t) + 256, float32 [512]; else empty.
        codes: its code, uint8 [512]; else empty.
        scale: float32 [G, R], of G groups of each block.
        minimum: float32 [G, R].
    """

    low: float
    high: float
    zero: float
    levels: Floats
    codes: Codes
    scale: Floats
    minimum: Floats


class Format(ABC, Generic[P]):
    """One quantized number format.

    Attributes:
        name: how users and plans call it, e.g. ``Q4_K`` or ``INT4_G64``.
        block: columns that share parameters; K must be a multiple. 0: the whole row, whatever its length.
        group: columns of a block that share parameters of their own, a divisor of `block`; 0: there are none.
        block_rows: neighbouring rows that share parameters, counted from the first; the last of them may be fewer.
            Where it isn't 1, `fit` takes rows of one block of columns, from the first of a band on.
        step: columns rounded together (1 for scalar grids, 8 for lattice codebooks).
        chunk: weights that `quantize_rows` is best called with at a time.
        workspace: bytes for each of them that it holds meanwhile, its arguments and its result included.
        bits: exact bits per weight, scales included (for ``block == 0``: of the codes alone, see `nbytes`).
        fallback: name of the format that takes rows whose length `block` doesn't divide, or None.
    """

    name: str
    block: int
    group: int = 0
    block_rows: int = 1
    step: int = 1
    # NumPy's float32 arrays of 256 KiB stay in a core's cache, and its overhead per call is small against them. The
    # searches keep 40 such arrays at once.
    chunk: int = 1 << 16
    workspace: int = 160
    bits: Fraction
    fallback: str | None = None
    params_type: ClassVar[type[Params]]

    @abstractmethod
    def fit(self, weight: Floats, importance: Floats | None = None) -> P:
        """Choose the parameters that minimise sum(importance * (weight - decode(round(weight)))**2).

        Args:
            weight: float32 [R, B], finite.
            importance: float32 [R, B] or [B], not negative; None counts every column alike. A block whose
                importance is all zero is fitted as if it were None.
        """

    @abstractmethod
    def round(self, weight: Floats, params: P, column: int = 0) -> Codes:
        """Nearest codes of columns column … column+S of each block: float32 [R, S] -> uint8 [R, S]."""

    @abstractmethod
    def decode(self, codes: Codes, params: P, column: int = 0) -> Floats:
        """The values the runtime computes from codes, exactly: uint8 [R, S] -> float32 [R, S]."""

    @abstractmethod
    def pack(self, codes: Codes, params: P) -> Parts:
        """The container's arrays for codes [N, K] and params of R blocks, bit-exact with its specification.

        The first axis of every part is N (rows), or the axis that `row_axes` names, so parts of consecutive rows
        concatenate; those in `tensor_parts` are the exception: they belong to the tensor and are equal for all rows.
        """

    @abstractmethod
    def unpack(self, parts: Mapping[str, npt.NDArray[Any]], shape: tuple[int, int]) -> tuple[Codes, P]:
        """The inverse of `pack`: codes [N, K] and params of R blocks."""

    def blind_importance(self, weight: Floats) -> Floats | None:
        """What plain rounding of blocks float32 [R, B] weighs errors with where nothing is known of the inputs.

        Returns:
            float32 [R, B] as `fit` takes it; None counts every column alike.
        """
        del weight
        return None

    def quantize_rows(self, rows: StoredRows, importance: Floats | None = None) -> Parts:
        """Fit, round and pack whole rows: what plain rounding is.

        Args:
            rows: [N, K], as the source holds them.
            importance: float32 [K], or [N, K] where rows differ in it; or None.

        Raises:
            NotFiniteError: there are NaN or infinities among them.
        """
        return fitted(self, finite_float32(rows, self.name), importance).pack()

    def numbers(self, tensor: QTensor) -> Numbers:
        """What a tensor in this format says, in words that other formats understand.

        Raises:
            FormatError: the format has scales of scales, or a table of its own.
        """
        del tensor
        raise FormatError(f"{self.name} has numbers that no other format holds")

    def take_over(self, numbers: Numbers) -> QTensor:
        """These numbers of some rows in this format, exactly; their blocks are a multiple of this format's.

        Raises:
            FormatError: it can't hold them; the message says why in a few words.
        """
        del numbers
        raise FormatError("its numbers can't be chosen one by one")

    def linear_parts(self) -> tuple[LinearPart[P], ...]:
        """What may be refitted for fixed codes, innermost first; empty if nothing may change."""
        return ()

    def fit_group(self, weight: Floats, params: P, group: int, importance: Floats | None = None) -> P:
        """Choose anew the parameters that belong to one group alone, all others kept.

        Args:
            weight: float32 [R, group], the columns of the group.
            params: of the R blocks.
            group: which group of the block.
            importance: float32 [group], or None.
        """
        del weight, group, importance
        return params

    def scaled_grid(self, params: P, groups: slice) -> ScaledGrid | None:
        """What the columns of some groups of each block are rounded to, bit for bit; None for any other rule.

        Args:
            params: of R blocks.
            groups: which of a block's groups; the first one where `group` is 0.
        """
        del params, groups
        return None

    def over_bands(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The sum of numbers of rows [R, ...] over those that share parameters, for each of them.

        What makes decisions that are taken row by row, by these numbers, the same in all rows of a band.
        """
        if self.block_rows == 1:
            return values
        starts = np.arange(0, len(values), self.block_rows)
        sums = np.add.reduceat(values, starts, axis=0)
        repeated: npt.NDArray[Any] = np.repeat(sums, self.block_rows, axis=0)[: len(values)]
        return repeated

    @property
    def codes(self) -> range:
        """The codes in use; empty for formats whose codes can't be tried one by one."""
        return range(0)

    tensor_parts: tuple[str, ...] = ()

    # Axis of the rows in each part where it isn't the first: GPTQ's and AWQ's arrays are transposed.
    row_axes: Mapping[str, int] = MappingProxyType({})

    # Rows of a chunk must be a multiple of this, except the last chunk's, for packed parts to concatenate:
    # compressed-tensors packs the zero points of several rows into one integer.
    rows_together: int = 1

    # The container's dtype of each part, where NumPy has no such type: BF16 (held as uint16), F8_E4M3 and
    # F8_E5M2 (held as uint8). Parts that are not named have the dtype of their array.
    part_dtypes: Mapping[str, str] = MappingProxyType({})

    def parts(self, shape: tuple[int, ...]) -> dict[str, PartLayout]:
        """Dtype and shape of every array that `pack` gives for a whole tensor of this shape, by name."""
        rows, columns = prod(shape[:-1]), shape[-1]
        layouts = {}
        for name, dtype, found in _packed_shapes(self, columns):
            if name in self.tensor_parts:
                layouts[name] = PartLayout(dtype, found, None)
            else:
                axis = self.row_axes.get(name, 0)
                layout = PartLayout(dtype, found, (found[axis], self.rows_together), axis)
                whole = (*found[:axis], layout.range(0, rows)[1], *found[axis + 1 :])
                layouts[name] = PartLayout(dtype, whole, layout.rows, axis)
        return layouts

    def prepare(self, chunks: Iterable[Floats]) -> Format[P]:
        """This format bound to one tensor, given its rows in chunks [n, K].

        Formats with a parameter of the whole tensor (NVFP4's global scale) return a bound copy;
        the others return themselves without touching the iterator.
        """
        del chunks
        return self

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Exact bytes of a tensor of this shape in this format, all parts together."""
        return sum(layout.nbytes for layout in self.parts(shape).values())

    def block_of(self, columns: int) -> int:
        """Columns that share parameters in rows of this length.

        Raises:
            FormatError: when the block doesn't divide the row.
        """
        block = self.block or columns
        if columns == 0 or columns % block:
            raise FormatError(
                f"{self.name} holds rows whose length is a multiple of {block}", found=f"rows of {columns}"
            )
        return block

    def divides(self, rows: int, columns: int) -> bool:
        """Whether blocks divide a matrix; 0 rows where the last band may be cut, since no rows follow it."""
        return rows % self.block_rows == 0 and columns % (self.block or columns) == 0

    def check_extent(self, rows: int, columns: int) -> None:
        """Refuse what blocks don't divide.

        Raises:
            FormatError: they don't; arguments as those of `divides`.
        """
        self.block_of(columns)
        if not self.divides(rows, columns):
            raise FormatError(
                f"{self.name} holds a matrix that other rows follow in the runtime's if its number of rows is a "
                f"multiple of {self.block_rows}", found=f"{rows} rows",
            )  # fmt: skip

    def bits_per_weight(self, shape: tuple[int, ...]) -> float:
        """Bits per weight of a tensor of this shape, scales included."""
        return 8 * self.nbytes(shape) / prod(shape)


@lru_cache(maxsize=256)
def _packed_shapes(fmt: Format[Any], columns: int) -> list[tuple[str, str, tuple[int, ...]]]:
    """(name, dtype, shape) of what `pack` gives for as many rows of zeros as are packed together."""
    weight = np.zeros((fmt.rows_together, columns), np.float32)
    blocks = weight.reshape(-1, fmt.block_of(columns))
    bound = fmt.prepare([weight])
    params = bound.fit(blocks)
    packed = bound.pack(bound.round(blocks, params).reshape(weight.shape), params)
    return [(n, fmt.part_dtypes.get(n) or _DTYPES[a.dtype.name], a.shape) for n, a in packed.items()]


@dataclass(frozen=True)
class QTensor:
    """A quantized tensor: codes uint8 [N, K] and the params of its R blocks, in one format."""

    format: Format[Any]
    shape: tuple[int, int]
    codes: Codes
    params: Params

    def dequantize(self) -> Floats:
        """The values the runtime sees, float32 [N, K]."""
        block = self.format.block_of(self.shape[1])
        return self.format.decode(self.codes.reshape(-1, block), self.params).reshape(self.shape)

    def pack(self) -> Parts:
        """The container's arrays."""
        return self.format.pack(self.codes, self.params)


def fitted(fmt: Format[Any], weight: Floats, importance: Floats | None = None) -> QTensor:
    """A matrix float32 [N, K] with every block's parameters by the format's own fit, and the nearest codes.

    `importance` as in `Format.quantize_rows`; without it, what `Format.blind_importance` says.
    """
    rows, columns = weight.shape
    block = fmt.block_of(columns)
    blocks = weight.reshape(-1, block)
    if importance is not None:
        importance = np.broadcast_to(importance, weight.shape).reshape(-1, block)
    else:
        importance = fmt.blind_importance(blocks)
    runs = block_runs(rows, columns // block, fmt, max(len(blocks), 1))
    pieces = [fmt.fit(blocks[run], None if importance is None else importance[run]) for run in runs]
    params = joined(pieces, runs, len(blocks), fmt)
    codes = fmt.round(blocks, params)
    return QTensor(fmt, (rows, columns), codes.reshape(rows, columns), params)
