"""What all block formats of GGUF share: sizes, bit folding, float16 scales, and the way into the searches.

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
from math import prod
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from fewbits.errors import FormatError
from fewbits.formats.format import Codes, Floats, Format, Params, Parts, ScaledGrid

Bytes = npt.NDArray[np.uint8]
P = TypeVar("P", bound=Params)
# Weights, importance, columns of a group, largest weight, lowest and highest value of the grid, its table.
KernelBlocks: TypeAlias = tuple[Floats, Floats | None, int, float, float, float, Floats]

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

    Subclasses say how a block is searched (`_search`) and laid out (`_pack_blocks`, `_unpack_blocks`). The search is
    the specification of a kernel in native/, which those that have one call in `_search_blocks`.

    Attributes:
        group: columns that share the innermost scale (all of a block where there is one scale).
        block_bytes: bytes of one block.
        largest: magnitude beyond which weights needn't be told apart.
        grid: what codes stand for before scaling.
    """

    group: int = 32
    largest: np.float32 = LARGEST
    grid: Grid

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
    def _pack_blocks(self, codes: Codes, params: P) -> list[Bytes]:
        """The fields of each block in order: codes [R, B] -> uint8 [R, bytes of the field] each."""

    @abstractmethod
    def _unpack_blocks(self, data: Bytes) -> tuple[Codes, P]:
        """The inverse: uint8 [R, block_bytes] -> codes [R, B] and params."""

    def fit(self, weight: Floats, importance: Floats | None = None) -> P:
        """Choose parameters, see `Format.fit`; a block gets the same ones whatever is passed with it."""
        if weight.ndim != 2 or weight.shape[1] != self.block:
            raise FormatError(f"{self.name} fits blocks of {self.block} columns", found=f"{weight.shape}")
        return self._search_blocks(weight, importance)

    def _search_blocks(self, weight: Floats, importance: Floats | None) -> P:
        """Parameters of R blocks, as `specified_fit` finds them: weight [R, B], importance [R, B], [B] or None."""
        return self.specified_fit(weight, importance)

    def specified_fit(self, weight: Floats, importance: Floats | None = None) -> P:
        """What `fit` finds, by `_search` itself."""
        tile = TILE // self.block
        pieces = []
        for start in range(0, max(len(weight), 1), tile):
            rows = slice(start, start + tile)
            of_rows = importance[rows] if importance is not None and importance.ndim == 2 else importance
            pieces.append(self._search(*self._columns_first(weight[rows], of_rows)))
        return pieces[0] if len(pieces) == 1 else type(pieces[0]).join(pieces)

    def _kernel_blocks(self, weight: Floats, importance: Floats | None) -> KernelBlocks:
        """What all kernels take first: the blocks, and what they are searched with."""
        if importance is not None:
            importance = np.ascontiguousarray(importance, np.float32)
        grid = self.grid
        low, high = float(grid.low), float(grid.high)
        weight = np.ascontiguousarray(weight, np.float32)
        return weight, importance, self.group, float(self.largest), low, high, grid.table

    def _scaled(self, scale: Floats, minimum: Floats | None = None) -> ScaledGrid:
        """The grid with scales and minima of some groups, float32 [R, G]."""
        grid, scale = self.grid, np.ascontiguousarray(scale.T)
        low = np.zeros_like(scale) if minimum is None else np.ascontiguousarray(minimum.T)
        ends = float(grid.low), float(grid.high), float(grid.zero)
        return ScaledGrid(*ends, grid.table, grid.code_table, scale, low)

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
        fields = self._pack_blocks(codes.reshape(-1, self.block), params)
        return {"data": np.concatenate(fields, axis=1).reshape(rows, blocks * self.block_bytes)}

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
        codes, params = self._unpack_blocks(data.reshape(-1, self.block_bytes))
        return codes.reshape(shape), params

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Exact bytes of a tensor of this shape."""
        self.block_of(shape[-1])
        return prod(shape) // self.block * self.block_bytes


def half_bytes(values: Floats) -> Bytes:
    """Numbers that a float16 holds, float32 [R] -> uint8 [R, 2], little-endian."""
    return values.astype("<f2").view(np.uint8).reshape(-1, 2)


def from_half_bytes(data: Bytes) -> Floats:
    """uint8 [R, 2] -> float32 [R]."""
    return np.ascontiguousarray(data).view("<f2").astype(np.float32).reshape(-1)


def reciprocal(scale: Floats) -> Floats:
    """1/scale, and 0 where scale is 0: all weights of such a block round to the code of zero."""
    return np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)


def fold(values: Codes, bits: int, span: int) -> Bytes:
    """Pack narrow numbers: of 8/bits runs of `span` numbers, the first takes the low bits of `span` bytes.

        fold(v, bits=4, span=16), one block of 32:   byte j = v[j] | v[j + 16] << 4
        fold(v, bits=1, span=1):                     bit i of byte b = v[8b + i]

    Args:
        values: uint8 [R, n], each below 2**bits; n a multiple of 8/bits * span.
        bits: 1, 2 or 4.
        span: bytes between the numbers of one byte.
    """
    width = values.shape[1] * bits // 8
    runs = values.reshape(len(values), width // span, 8 // bits, span)
    folded: Bytes = runs[:, :, 0].copy()
    for i in range(1, 8 // bits):  # several times as fast as a reduction over this short axis
        folded |= runs[:, :, i] << np.uint8(i * bits)
    return folded.reshape(len(values), width)


def unfold(data: Bytes, bits: int, span: int) -> Codes:
    """The inverse of `fold`: uint8 [R, n*bits/8] -> uint8 [R, n]."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    width = data.shape[1]
    runs = data.reshape(len(data), width // span, 1, span) >> shifts[:, None]
    return (runs & np.uint8(2**bits - 1)).reshape(len(data), width * 8 // bits)


def per_column(values: Floats, column: int, count: int, group: int) -> Floats:
    """What belongs to each column from `column` on: [R, G] -> [R, count], or [R, 1] if one group has all."""
    first, last = column // group, (column + count - 1) // group
    if first == last:
        return values[:, first : first + 1]
    return np.take(values, np.arange(column, column + count) // group, axis=1)
