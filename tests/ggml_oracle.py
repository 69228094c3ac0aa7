"""llama.cpp's own quantizer, reached through the C API that xllamacpp's shared object exports."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest

Floats = npt.NDArray[np.float32]


@cache
def _library() -> ctypes.CDLL:
    xllamacpp = pytest.importorskip("xllamacpp")
    (path,) = Path(xllamacpp.__file__).parent.glob("xllamacpp*.so")
    library = ctypes.CDLL(str(path))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,  # enum ggml_type
        ctypes.c_void_p,  # const float * src
        ctypes.c_void_p,  # void * dst
        ctypes.c_int64,  # start
        ctypes.c_int64,  # nrows
        ctypes.c_int64,  # n_per_row
        ctypes.c_void_p,  # const float * imatrix
    ]
    library.ggml_quantize_init.argtypes = [ctypes.c_int]
    return library


def quantize(name: str, weight: Floats, importance: Floats | None = None) -> npt.NDArray[np.uint8]:
    """weight [N, K], importance [K] -> the bytes llama.cpp stores, uint8 [N, bytes per row]."""
    kind = gguf.GGMLQuantizationType[name]
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    rows, columns = weight.shape
    source = np.ascontiguousarray(weight, np.float32)
    out = np.empty((rows, columns // block * block_bytes), np.uint8)
    of_columns = None if importance is None else np.ascontiguousarray(importance, np.float32)
    library = _library()
    library.ggml_quantize_init(kind.value)
    written = library.ggml_quantize_chunk(
        kind.value,
        source.ctypes.data,
        out.ctypes.data,
        0,
        rows,
        columns,
        None if of_columns is None else of_columns.ctypes.data,
    )
    assert written == out.nbytes
    return out


def dequantize(name: str, data: npt.NDArray[np.uint8]) -> Floats:
    """What the gguf package reads from those bytes."""
    values: Floats = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[name])
    return values
