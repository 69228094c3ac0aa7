"""Dense packing of 2 to 8-bit codes into 32-bit words, as compressed-tensors' pack-quantized has it.

Code i of a row takes bits i*b … i*b + b - 1 of the row, counted from the lowest bit of the first byte, and
may straddle bytes and words. A row ends on a whole 32-bit word; the bits left over are zero.

    b = 3:  byte 0    byte 1    byte 2
            22111000  54443332  77766655      (the digit says which code the bit belongs to, high bit left)
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fewbits.formats.format import Codes


def words_per_row(columns: int, width: int) -> int:
    """32-bit words that hold this many codes of this many bits."""
    return -(-columns * width // 32)


def pack_words(codes: Codes, width: int) -> npt.NDArray[np.int32]:
    """Codes uint8 [N, K], each below 2**width, as int32 [N, ceil(K * width / 32)]."""
    rows, columns = codes.shape
    octets = -(-columns // 8)
    padded = np.zeros((rows, octets * 8), np.uint8)
    padded[:, :columns] = codes
    # Eight codes are `width` whole bytes: build them in one 64-bit number and keep its low bytes.
    number = np.zeros((rows, octets), "<u8")
    for i in range(8):
        number |= padded[:, i::8].astype("<u8") << np.uint64(i * width)
    octet = number.view(np.uint8).reshape(rows, octets, 8)[:, :, :width].reshape(rows, octets * width)
    packed = np.zeros((rows, words_per_row(columns, width) * 4), np.uint8)
    used = min(packed.shape[1], octet.shape[1])
    packed[:, :used] = octet[:, :used]
    return packed.view("<i4")


def unpack_words(words: npt.NDArray[np.int32], width: int, columns: int) -> Codes:
    """The inverse of `pack_words`: int32 [N, words] -> uint8 [N, columns]."""
    rows = words.shape[0]
    octets = -(-columns // 8)
    packed = np.ascontiguousarray(words, "<i4").view(np.uint8)
    number = np.zeros((rows, octets, 8), np.uint8)
    octet = np.zeros((rows, octets * width), np.uint8)
    used = min(packed.shape[1], octet.shape[1])
    octet[:, :used] = packed[:, :used]
    number[:, :, :width] = octet.reshape(rows, octets, width)
    wide = number.view("<u8")[:, :, 0]
    codes = np.empty((rows, octets, 8), np.uint8)
    for i in range(8):
        codes[:, :, i] = (wide >> np.uint64(i * width)) & np.uint64((1 << width) - 1)
    return codes.reshape(rows, octets * 8)[:, :columns]


def pack_nibbles(codes: Codes) -> Codes:
    """Codes uint8 [N, K], each below 16, as uint8 [N, ceil(K / 2)]: even columns in the low nibbles."""
    if codes.shape[1] % 2:
        codes = np.pad(codes, ((0, 0), (0, 1)))
    packed: Codes = codes[:, ::2] | codes[:, 1::2] << np.uint8(4)
    return packed


def unpack_nibbles(packed: Codes, columns: int) -> Codes:
    """The inverse of `pack_nibbles`: uint8 [N, ceil(K / 2)] -> uint8 [N, K], a fresh array."""
    codes = np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1)
    return np.ascontiguousarray(codes.reshape(len(packed), -1)[:, :columns])


def pack_bytes(codes: Codes, width: int) -> Codes:
    """Codes uint8 [N, K] of 4 or 8 bits as uint8 [N, ceil(K * width / 8)]: by `pack_nibbles`, or as they are."""
    return np.ascontiguousarray(codes) if width == 8 else pack_nibbles(codes)


def unpack_bytes(packed: Codes, width: int, columns: int) -> Codes:
    """The inverse of `pack_bytes`: uint8 [N, ceil(K * width / 8)] -> uint8 [N, K], a fresh array."""
    return packed[:, :columns].copy() if width == 8 else unpack_nibbles(packed, columns)


def signed(codes: npt.NDArray[np.uint8], middle: int) -> npt.NDArray[np.int8]:
    """Code - middle: uint8 -> int8."""
    return (codes - np.uint8(middle)).view(np.int8)


def unsigned(values: npt.NDArray[np.int8], middle: int) -> npt.NDArray[np.uint8]:
    """The inverse of `signed`."""
    return values.view(np.uint8) + np.uint8(middle)
