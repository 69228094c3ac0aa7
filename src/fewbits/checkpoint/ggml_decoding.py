"""Numbers of GGUF's block formats: fewbits' own formats where it has them, the gguf package for the rest."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt

from fewbits.checkpoint.gguf_constants import GGML_TYPES
from fewbits.errors import FormatError

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

# Decoded at once: the steps between need several times the result's memory.
_ELEMENTS = 1 << 18


def decode_blocks(dtype: str, raw: Bytes, columns: int) -> Floats:
    """The values that ggml computes from quantized rows.

    Args:
        dtype: a block format of `gguf_constants.GGML_TYPES`.
        raw: uint8 [N, columns / block * bytes per block].
        columns: K, weights per row.

    Returns:
        float32 [N, K].
    """
    decode = _decoder(dtype)
    values = np.empty((len(raw), columns), np.float32)
    step = max(1, _ELEMENTS // columns)
    # Scales that are infinite or NaN are the caller's to find, with the tensor's name at hand.
    with np.errstate(all="ignore"):
        for start in range(0, len(raw), step):
            values[start : start + step] = decode(raw[start : start + step], columns)
    return values


@cache
def _decoder(dtype: str) -> Callable[[Bytes, int], Floats]:
    own = {"Q8_1": _decode_q8_1, "Q8_K": _decode_q8_k, "Q1_0": _decode_q1_0, "Q2_0": _decode_q2_0}
    return own.get(dtype) or _registered(dtype) or _of_gguf_package(dtype)


def _registered(dtype: str) -> Callable[[Bytes, int], Floats] | None:
    from fewbits.formats.registry import get_format

    try:
        fmt = get_format(dtype)
    except FormatError:
        return None
    kind = GGML_TYPES[dtype]
    if fmt.name != dtype or fmt.block != kind.block or fmt.nbytes((1, kind.block)) != kind.nbytes:
        return None  # NVFP4 of compressed-tensors is not ggml's

    def decode(raw: Bytes, columns: int) -> Floats:
        codes, params = fmt.unpack({"data": raw}, (len(raw), columns))
        return fmt.decode(codes.reshape(-1, fmt.block), params).reshape(len(raw), columns)

    return decode


def _of_gguf_package(dtype: str) -> Callable[[Bytes, int], Floats]:
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    try:
        kind = GGMLQuantizationType[dtype]
    except KeyError:
        kind = None
    if kind is None:
        raise FormatError(
            f"the installed gguf package cannot decode {dtype}",
            action="Update it (pip install -U gguf), or start from a file of another type.",
        )

    def decode(raw: Bytes, columns: int) -> Floats:
        values: Floats = dequantize(raw, kind)
        return values.reshape(len(raw), columns)

    return decode


# The formats that neither has. Blocks as in ggml-common.h:
#   Q8_1  half d, half sum, int8 q[32]          value d * q
#   Q8_K  float d, int8 q[256], int16 sums[16]  value d * q
#   Q1_0  half d, bit q[128]                    value q ? d : -d; bit j of byte i is weight 8 i + j
#   Q2_0  half d, 2-bit q[64]                   value d * (q - 1); bits 2j … 2j + 1 of byte i: weight 4 i + j


def _decode_q8_1(raw: Bytes, columns: int) -> Floats:
    blocks = raw.reshape(-1, 36)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    return (scale * blocks[:, 4:].view(np.int8)).astype(np.float32).reshape(-1, columns)


def _decode_q8_k(raw: Bytes, columns: int) -> Floats:
    blocks = raw.reshape(-1, 292)
    scale = blocks[:, :4].copy().view(np.float32)
    return (scale * blocks[:, 4:260].view(np.int8)).astype(np.float32).reshape(-1, columns)


def _decode_q1_0(raw: Bytes, columns: int) -> Floats:
    blocks = raw.reshape(-1, 18)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    bits = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little")
    return np.where(bits, scale, -scale).reshape(-1, columns)


def _decode_q2_0(raw: Bytes, columns: int) -> Floats:
    blocks = raw.reshape(-1, 18)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    codes = blocks[:, 2:, None] >> np.arange(0, 8, 2, dtype=np.uint8) & 3
    values = scale * (codes.reshape(len(blocks), 64).astype(np.float32) - 1)
    return values.astype(np.float32).reshape(-1, columns)
