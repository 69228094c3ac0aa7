"""What all block formats of GGUF share: sizes, layouts, and the way into the kernels.

A GGUF tensor is a matrix of bytes: each row of K weights is K/B blocks, each block a fixed number of bytes
that holds B codes and their scales. Source: ggml's quantized types (MIT), as documented in docs/formats.md.

Dimension letters as in `format.py`, and
    G groups of a block that have a sub-scale of their own (1 where there are none)
    g columns of a group, B = G * g
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from math import prod
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from fewbits import _native
from fewbits.errors import FormatError, NotFiniteError
from fewbits.formats.block_layout import BlockLayout
from fewbits.formats.format import Codes, Floats, Format, Params, Parts, ScaledGrid
from fewbits.formats.stored_rows import StoredRows

P = TypeVar("P", bound=Params)
Search: TypeAlias = (
    _native.ScaleSearch
    | _native.AffineSearch
    | _native.SuperScaleSearch
    | _native.SuperAffineSearch
    | _native.ExponentSearch
)
# Lowest and highest value of a grid, code of 0, its tables.
KernelGrid: TypeAlias = tuple[float, float, float, Floats, Codes]

# Weights per block, bytes per block.
SIZES: dict[str, tuple[int, int]] = {
    "Q8_0": (32, 34),
    "Q6_K": (256, 210),
    "Q5_K": (256, 176),
    "Q4_K": (256, 144),
    "Q3_K": (256, 110),
    "Q2_K": (256, 84),
    "Q5_1": (32, 24),
    "Q5_0": (32, 22),
    "Q4_1": (32, 20),
    "Q4_0": (32, 18),
    "IQ4_NL": (32, 18),
    "IQ4_XS": (256, 136),
    "MXFP4": (32, 17),
}

# What takes the rows whose length the block doesn't divide: a 32-column format with more bits, so that
# nothing loses quality by falling, then F16.
FALLBACKS: dict[str, str] = {
    "Q6_K": "Q8_0",
    "Q5_K": "Q5_1",
    "Q4_K": "Q5_0",
    "Q3_K": "IQ4_NL",
    "Q2_K": "IQ4_NL",
    "IQ4_XS": "IQ4_NL",
}

# Weights searched together: a NumPy call on so many takes ten times its fixed cost, and the five float32
# arrays that candidates share (1.3 MB) stay in or near a core's own cache.
TILE = 65536

# No format here decodes to more than 65504 * 128 * 32; larger weights are searched as if they were this
# large, so that squares and their sums stay finite in float32.
LARGEST = np.float32(2.0**28)

# Keeps the normal equations regular where a whole group has no importance; far below any that counts.
LEAST_IMPORTANCE = np.float32(1e-9)


class Grid(Protocol):
    """The values that a code may stand for, before scaling.

    Attributes:
        low: the smallest value.
        high: the largest value.
        zero: code of value 0, where codes are values plus that.
        codes: those in use.
        table: where values aren't all the integers from low to high: the one nearest to t is at floor(2t) + 256,
            float32 [512]; else empty.
        code_table: the codes of these, uint8 [512]; else empty.
    """

    low: np.float32
    high: np.float32
    zero: np.float32
    codes: range
    table: Floats
    code_table: Codes

    def snap(self, numbers: Floats) -> None:
        """Replace each number by the nearest value of the grid, in place."""

    def encode(self, numbers: Floats) -> Codes:
        """Codes of the nearest values; may overwrite `numbers`."""

    def decode(self, codes: Codes) -> Floats:
        """Values of codes."""


class BlockFormat(Format[P]):
    """A GGUF format whose blocks are packed one by one into the single part ``data``: uint8 [N, K/B*bytes].

    Subclasses say how a block is searched (`_search`), with which candidates (`_kernel_search`), and what of the
    parameters is stored (`_stored`, `_restored`). `_search`, `round` and the layout are the specification of a kernel
    in native/, which does all three in one pass over the rows (`quantize_rows`).

    Attributes:
        group: columns that share the innermost scale (all of a block where there is one scale).
        layout: where everything lies in a block's bytes.
        largest: magnitude beyond which weights needn't be told apart.
        grid: what codes stand for before scaling.
    """

    group: int = 32
    layout: BlockLayout
    largest: np.float32 = LARGEST
    grid: Grid
    # The kernel keeps a few blocks at a time; what counts is a chunk's rows and bytes.
    chunk = 1 << 19
    workspace = 8

    @property
    def codes(self) -> range:
        """Those of the grid."""
        return self.grid.codes

    def __init__(self, name: str) -> None:
        self.name = name
        self.block, self.block_bytes = SIZES[name]
        self.bits = Fraction(8 * self.block_bytes, self.block)
        self.fallback = FALLBACKS.get(name, "F16")

    @abstractmethod
    def _search(self, weight: Floats, importance: Floats | None) -> P:
        """Parameters of one tile: weight and importance float32 [g, G, R], importance at most 1."""

    @abstractmethod
    def _kernel_search(self, *, weighted: bool) -> Search:
        """The same search for the kernel, without or with importance."""

    @abstractmethod
    def _stored(self, params: P) -> tuple[tuple[Floats, ...], Codes]:
        """What of the parameters is stored: float16 numbers float32 [R] each, integers uint8 [R, layout.scales]."""

    @abstractmethod
    def _restored(self, halves: tuple[Floats, ...], scales: Codes) -> P:
        """The inverse."""

    def fit(self, weight: Floats, importance: Floats | None = None) -> P:
        """Choose parameters, see `Format.fit`; a block gets the same ones whatever is passed with it."""
        if weight.ndim != 2 or weight.shape[1] != self.block:
            raise FormatError(f"{self.name} fits blocks of {self.block} columns", found=f"{weight.shape}")
        weight = np.ascontiguousarray(weight, np.float32)
        if importance is not None:
            importance = np.ascontiguousarray(importance, np.float32)
        halves = np.empty((len(self.layout.halves), len(weight)), np.float32)
        scales = np.empty((len(weight), self.layout.scales), np.uint8)
        _kernel(self, importance is not None).fit(weight, importance, halves, scales)
        scales -= np.uint8(self.layout.raised)
        return self._restored(tuple(halves), scales)

    def quantize_rows(self, rows: StoredRows, importance: Floats | None = None) -> Parts:
        """See `Format.quantize_rows`: the parts are those of `fit`, `round` and `pack`, byte for byte."""
        count, columns = rows.shape
        packed = np.empty((count, columns // self.block_of(columns) * self.block_bytes), np.uint8)
        if importance is not None:
            importance = np.ascontiguousarray(importance, np.float32)
        kernel = _kernel(self, importance is not None)
        if not kernel.quantize(np.ascontiguousarray(rows), importance, packed):
            raise NotFiniteError(self.name)
        return {"data": packed}

    def fit_group_natively(
        self, weight: Floats, importance: Floats | None, halves: Floats, scales: Floats
    ) -> None:
        """The search for the scales of one group alone; `scales` are what may not get worse, and are changed.

        Args:
            weight: float32 [R, group].
            importance: float32 [group], or None.
            halves: d, and dmin where there is one, float32 [halves, R].
            scales: sub-scale, and minimum where there is one, float32 [halves, R].
        """
        weight = np.ascontiguousarray(weight, np.float32)
        if importance is not None:
            importance = np.ascontiguousarray(importance, np.float32)
        _kernel(self, importance is not None).fit_group(weight, importance, halves, scales)

    def specified_fit(self, weight: Floats, importance: Floats | None = None) -> P:
        """What `fit` finds, by `_search` itself."""
        tile = TILE // self.block
        pieces = []
        for start in range(0, max(len(weight), 1), tile):
            rows = slice(start, start + tile)
            of_rows = importance[rows] if importance is not None and importance.ndim == 2 else importance
            pieces.append(self._search(*self._columns_first(weight[rows], of_rows)))
        return pieces[0] if len(pieces) == 1 else type(pieces[0]).join(pieces)

    def _kernel_grid(self) -> KernelGrid:
        grid = self.grid
        return float(grid.low), float(grid.high), float(grid.zero), grid.table, grid.code_table

    def kernel(self, *, weighted: bool) -> _native.BlockKernel:
        """The kernel that does what this format specifies, without or with importance."""
        layout = self.layout
        stored = (
            layout.nbytes,
            list(layout.halves),
            layout.scales,
            layout.raised,
            layout.flipped,
            layout.table,
        )
        search = self._kernel_search(weighted=weighted)
        return _native.BlockKernel(
            self.block, self.group, float(self.largest), self._kernel_grid(), stored, search
        )

    def _scaled(self, scale: Floats, minimum: Floats | None = None) -> ScaledGrid:
        """The grid with scales and minima of some groups, float32 [R, G]."""
        scale = np.ascontiguousarray(scale.T)
        low = np.zeros_like(scale) if minimum is None else np.ascontiguousarray(minimum.T)
        return ScaledGrid(*self._kernel_grid(), scale, low)

    def _columns_first(self, weight: Floats, importance: Floats | None) -> tuple[Floats, Floats | None]:
        """[R, B] -> [g, G, R] of both: sums inside a group become sums of whole vectors over blocks.

        Importance is divided by its largest value in the block, so that its unit can't overflow anything.
        """
        shape = (len(weight), weight.shape[1] // self.group, self.group)
        columns = weight.astype(np.float32, copy=False).reshape(shape).transpose(2, 1, 0).copy()
        np.clip(columns, -self.largest, self.largest, out=columns)
        if importance is None:
            return columns, None
        full = np.broadcast_to(importance.astype(np.float32, copy=False), weight.shape)
        shares = full.reshape(shape).transpose(2, 1, 0).copy()
        most = shares.max(axis=(0, 1))
        np.divide(shares, np.where(most > 0, most, np.float32(1)), out=shares)
        np.maximum(shares, np.where(most > 0, LEAST_IMPORTANCE, np.float32(1)), out=shares)
        return columns, shares

    def pack(self, codes: Codes, params: P) -> Parts:
        """``data``: uint8 [N, K/B*bytes]."""
        rows, columns = codes.shape
        blocks = columns // self.block_of(columns)
        halves, scales = self._stored(params)
        data = self.layout.pack(codes.reshape(-1, self.block), scales, halves)
        return {"data": data.reshape(rows, blocks * self.block_bytes)}

    def unpack(self, parts: Mapping[str, npt.NDArray[Any]], shape: tuple[int, int]) -> tuple[Codes, P]:
        """The inverse of `pack`.

        Raises:
            FormatError: ``data`` hasn't the bytes that `shape` needs.
        """
        rows, columns = shape
        data = np.ascontiguousarray(parts["data"])
        width = columns // self.block_of(columns) * self.block_bytes
        if data.dtype != np.uint8 or data.size != rows * width:
            raise FormatError(
                f"the bytes of a {self.name} tensor of shape {shape} don't fit",
                found=f"{data.dtype} {data.shape}",
                allowed=f"uint8 ({rows}, {width})",
            )
        codes, scales, halves = self.layout.unpack(data.reshape(-1, self.block_bytes), self.block)
        return codes.reshape(shape), self._restored(halves, scales)

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Exact bytes of a tensor of this shape."""
        self.block_of(shape[-1])
        return prod(shape) // self.block * self.block_bytes


@lru_cache(maxsize=64)
def _kernel(fmt: BlockFormat[Any], weighted: bool) -> _native.BlockKernel:
    # Not an attribute of the format: those are sent to other processes, kernels can't be.
    return fmt.kernel(weighted=weighted)


def reciprocal(scale: Floats) -> Floats:
    """1/scale, and 0 where scale is 0: all weights of such a block round to the code of zero."""
    return np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)


def per_column(values: Floats, column: int, count: int, group: int) -> Floats:
    """What belongs to each column from `column` on: [R, G] -> [R, count], or [R, 1] if one group has all."""
    first, last = column // group, (column + count - 1) // group
    if first == last:
        return values[:, first : first + 1]
    return np.take(values, np.arange(column, column + count) // group, axis=1)
