"""Where the numbers of a GGUF block lie in its bytes, as data: the specification of native/kernels/pack.inc.

A block holds codes uint8 [B], integers that belong to its scales uint8 [n] (sub-scales, then minima), and up to two
float16. All integers are little-endian.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fewbits.formats.format import Codes, Floats

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Piece:
    """Some bits of a run of numbers, in a run of bytes.

        byte + i:   | … | bits shift … shift + bits of number first + i * stride : bits | … : left |    i < count

    Attributes:
        first, count, stride: which numbers.
        shift, bits: which of their bits.
        byte, left: where these go, and how many bits of the byte are below them.
        of_scales: whether the numbers are those of scales instead of the codes.
    """

    first: int
    count: int
    stride: int
    shift: int
    bits: int
    byte: int
    left: int
    of_scales: bool

    def numbers(self, codes: Codes, scales: Codes) -> Codes:
        """The numbers, a view [R, count] of one of the two."""
        of = scales if self.of_scales else codes
        return of[:, self.first : self.first + self.count * self.stride : self.stride]

    def bytes_of(self, data: Bytes) -> Bytes:
        """The bytes, a view [R, count]."""
        return data[:, self.byte : self.byte + self.count]

    @property
    def mask(self) -> int:
        """The bits, moved to the low end."""
        return (1 << self.bits) - 1


def run(
    count: int,
    bits: int,
    *,
    byte: int,
    first: int = 0,
    shift: int = 0,
    left: int = 0,
    of_scales: bool = False,
) -> Piece:
    """Neighbouring numbers in neighbouring bytes."""
    return Piece(first, count, 1, shift, bits, byte, left, of_scales)


def fold(
    count: int, bits: int, span: int, *, byte: int, shift: int = 0, of_scales: bool = False
) -> tuple[Piece, ...]:
    """Numbers 0 … count, 8/bits of them in each byte: of 8/bits runs of `span`, the first takes the low bits.

        fold(32, bits=4, span=16):   byte j = v[j] | v[j + 16] << 4
        fold(32, bits=1, span=1):    bit i of byte b = v[8b + i]

    Args:
        count: how many; a multiple of 8/bits * span.
        bits: 1, 2 or 4.
        span: bytes between the numbers of one byte.
        byte: the first one.
        shift: the lowest of the bits that are meant.
        of_scales: see `Piece`.
    """
    together = 8 // bits
    if span == 1:
        return tuple(
            Piece(i, count // together, together, shift, bits, byte, i * bits, of_scales)
            for i in range(together)
        )
    return tuple(
        Piece((j * together + i) * span, span, 1, shift, bits, byte + j * span, i * bits, of_scales)
        for j in range(count // (together * span))
        for i in range(together)
    )


class BlockLayout:
    """The bytes of a block.

    Attributes:
        nbytes: how many.
        halves: the byte where d stands, and that of dmin or m, where there are any.
        scales: how many integers belong to scales.
        pieces: of codes and scales.
        raised: what is added to these integers, modulo 256.
        flipped: bits of codes that are stored inverted.
    """

    def __init__(
        self,
        nbytes: int,
        pieces: Iterable[Piece],
        *,
        halves: tuple[int, ...] = (),
        scales: int = 0,
        raised: int = 0,
        flipped: int = 0,
    ) -> None:
        self.nbytes, self.pieces, self.halves = nbytes, tuple(pieces), halves
        self.scales, self.raised, self.flipped = scales, raised, flipped

    @cached_property
    def table(self) -> npt.NDArray[np.int32]:
        """The pieces as kernels take them, int32 [pieces, 8]."""
        rows = [
            (p.of_scales, p.first, p.count, p.stride, p.shift, p.mask, p.byte, p.left) for p in self.pieces
        ]
        return np.array(rows, np.int32)

    def pack(self, codes: Codes, scales: Codes, halves: Sequence[Floats]) -> Bytes:
        """The bytes of R blocks, uint8 [R, nbytes].

        Args:
            codes: uint8 [R, B].
            scales: uint8 [R, scales].
            halves: float32 [R] each, exactly float16.
        """
        data = np.zeros((len(codes), self.nbytes), np.uint8)
        if self.flipped:
            codes = codes ^ np.uint8(self.flipped)
        if self.raised:
            scales = scales + np.uint8(self.raised)
        for piece in self.pieces:
            numbers = piece.numbers(codes, scales) >> np.uint8(piece.shift)
            numbers &= np.uint8(piece.mask)
            piece.bytes_of(data)[...] |= numbers << np.uint8(piece.left)
        for byte, numbers_of in zip(self.halves, halves, strict=True):
            data[:, byte : byte + 2] = numbers_of.astype("<f2").view(np.uint8).reshape(-1, 2)
        return data

    def unpack(self, data: Bytes, columns: int) -> tuple[Codes, Codes, tuple[Floats, ...]]:
        """The inverse: uint8 [R, nbytes] -> codes [R, columns], scales and halves."""
        codes = np.zeros((len(data), columns), np.uint8)
        scales = np.zeros((len(data), self.scales), np.uint8)
        for piece in self.pieces:
            bits = piece.bytes_of(data) >> np.uint8(piece.left)
            bits &= np.uint8(piece.mask)
            piece.numbers(codes, scales)[...] |= bits << np.uint8(piece.shift)
        if self.flipped:
            codes ^= np.uint8(self.flipped)
        if self.raised:
            scales -= np.uint8(self.raised)
        halves = (np.ascontiguousarray(data[:, byte : byte + 2]).view("<f2") for byte in self.halves)
        return codes, scales, tuple(half.astype(np.float32).reshape(-1) for half in halves)
