"""Unquantized number types of both containers, and how float32 becomes their bytes and comes back."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

# dtype name -> NumPy type of the stored bits. BF16 and the 8-bit floats are decoded from their bits.
STORAGE: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("u1"),
    "F8_E4M3": np.dtype("u1"),
    "F8_E5M2": np.dtype("u1"),
    "F8_E8M0": np.dtype("u1"),
}
FP8 = ("F8_E4M3", "F8_E5M2")
# What weights that stay in floating point are written in.
PLAIN = ("F32", "F16", "BF16")


def decode_plain(dtype: str, raw: npt.NDArray[np.uint8]) -> Floats:
    """The numbers in `raw` as float32.

    Args:
        dtype: a key of `STORAGE`. F64 and integers above 2**24 are rounded to the nearest float32;
            an F64 beyond float32's range becomes infinite.
        raw: uint8 [N, bytes per row], contiguous.

    Returns:
        float32 [N, K]; for F32 a view of `raw`.
    """
    stored = raw.view(STORAGE[dtype])
    if dtype == "BF16":
        # A bfloat16 is the upper half of a float32.
        widened: npt.NDArray[np.uint32] = stored.astype(np.uint32)
        widened <<= 16
        result: Floats = widened.view(np.float32)
        return result
    if dtype in ("F8_E4M3", "F8_E5M2", "F8_E8M0"):
        decoded: Floats = _small_float_table(dtype)[stored]
        return decoded
    with np.errstate(over="ignore", invalid="ignore"):
        return stored.astype(np.float32, copy=False)


def encode_plain(dtype: str, weight: Floats) -> npt.NDArray[np.uint8]:
    """Finite numbers rounded to the nearest that a dtype holds, of two as near the even one.

    Args:
        dtype: one of `PLAIN`. What is beyond the range of F16 becomes its largest number; of BF16, infinite.
        weight: float32 [N, K], contiguous.

    Returns:
        uint8 [N, bytes per row], which `decode_plain` reads; for F32 a view of `weight`.
    """
    if dtype == "F32":
        return weight.view(np.uint8)
    if dtype == "F16":
        limit = np.finfo(np.float16).max
        return np.clip(weight, -limit, limit).astype(np.float16).view(np.uint8)
    from fewbits.formats.minifloat import bfloat16_bits, round_bfloat16  # it imports the formats

    return bfloat16_bits(round_bfloat16(weight)).view(np.uint8)


@cache
def _small_float_table(dtype: str) -> Floats:
    """The value of each of the 256 codes, float32 [256].

    F8_E4M3  s eeee mmm   bias 7, no infinity, s.1111.111 is NaN
    F8_E5M2  s eeeee mm   bias 15, infinity and NaN as in IEEE 754
    F8_E8M0  eeeeeeee     a power of two, bias 127, 255 is NaN
    (OCP 8-bit floating point specification 1.0, OCP microscaling formats 1.0)
    """
    codes = np.arange(256)
    if dtype == "F8_E8M0":
        table = np.ldexp(np.float64(1), codes - 127)
        table[255] = np.nan
        return table.astype(np.float32)
    if dtype == "F8_E5M2":
        return (codes.astype(np.uint16) << 8).view(np.float16).astype(np.float32)  # the upper half of an F16
    exponent, mantissa = codes >> 3 & 15, codes & 7
    normal = np.ldexp(1 + mantissa / 8, exponent - 7)
    table = np.where(exponent == 0, np.ldexp(mantissa / 8, -6), normal)
    table[codes & 127 == 127] = np.nan
    return np.where(codes & 128, -table, table).astype(np.float32)
