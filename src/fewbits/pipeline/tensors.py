"""Quantizing tensors in row chunks on several threads, in order, with bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fewbits.algorithms import rtn
from fewbits.checkpoint.checkpoint import LazyTensor, StoredTensor
from fewbits.errors import CheckpointError
from fewbits.export.exporter import OutputTensor
from fewbits.formats import get_format
from fewbits.planning.plan import TensorChoice

# Elements that one task works on: its float32 arrays of 256 KiB stay in a core's cache, and NumPy's
# overhead per call is small against them. Rows are never split.
CHUNK_ELEMENTS = 1 << 16
# Arrays of a chunk's size that a format's search keeps at once, measured on the k-quants.
WORK_ARRAYS = 40
# Chunks waiting to be written, per thread, so that threads don't idle while the writer writes.
WINDOW = 3

PLAIN = ("F32", "F16", "BF16")

Bytes: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Chunk:
    """Finished bytes of some rows of a tensor, in order, with how many weights; `last` closes the tensor."""

    tensor: OutputTensor
    data: Bytes
    weights: int
    last: bool


def chunk_rows(columns: int, together: int = 1) -> int:
    """Rows in a chunk: a multiple of the rows that a format packs together."""
    return max(together, CHUNK_ELEMENTS // max(columns, 1) // together * together)


def peak_workspace(tensors: Iterable[OutputTensor], threads: int) -> int:
    """Bytes that the threads hold at once, at most."""
    largest = max((chunk_rows(t.shape[-1]) * t.shape[-1] for t in tensors if t.shape), default=0)
    return threads * 4 * largest * (WORK_ARRAYS + 2 * WINDOW)


def quantized_chunks(
    tensors: Iterable[OutputTensor], choices: Mapping[str, TensorChoice], threads: int
) -> Iterator[Chunk]:
    """The bytes of all tensors, chunk by chunk, in the order given.

    Raises:
        CheckpointError: a weight that isn't finite; the message counts them.
    """
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[OutputTensor, int, bool, Future[Bytes]]] = deque()
        try:
            for tensor in tensors:
                rows, columns = tensor.source.matrix
                task = _task(tensor, choices[tensor.name])
                step = chunk_rows(columns, _rows_together(choices[tensor.name]))
                for start in range(0, max(rows, 1), step):  # once for an empty tensor
                    stop = min(start + step, rows)
                    waiting.append((tensor, stop - start, stop == rows, pool.submit(task, start, stop)))
                    if len(waiting) > WINDOW * threads:
                        yield _finish(*waiting.popleft())
            while waiting:
                yield _finish(*waiting.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _rows_together(choice: TensorChoice) -> int:
    return 1 if choice.format in PLAIN else get_format(choice.format).rows_together


def _finish(tensor: OutputTensor, rows: int, last: bool, future: Future[Bytes]) -> Chunk:
    return Chunk(tensor, future.result(), rows * tensor.shape[-1] if tensor.shape else 1, last)


class _PlainEncoder:
    """Float32 rows to F32, F16 or BF16 bytes, rounded to nearest even."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype

    def __call__(self, weight: npt.NDArray[np.float32]) -> Bytes:
        if self.dtype == "F32":
            return weight.view(np.uint8)
        if self.dtype == "F16":
            with np.errstate(over="ignore"):
                return np.clip(weight, -65504, 65504).astype(np.float16).view(np.uint8)
        bits = weight.view(np.uint32)
        rounded = bits + 0x7FFF + ((bits >> 16) & 1)
        return (rounded >> 16).astype(np.uint16).view(np.uint8)


def _encoder(tensor: OutputTensor, choice: TensorChoice) -> _PlainEncoder | _FormatEncoder:
    if choice.algorithm == "none":
        return _PlainEncoder(choice.format)
    return _FormatEncoder(choice, tensor.source)


class _FormatEncoder:
    """Float32 rows to a quantized format's bytes."""

    def __init__(self, choice: TensorChoice, source: LazyTensor) -> None:
        self.format = get_format(choice.format).prepare(source.chunks(CHUNK_ELEMENTS))

    def __call__(self, weight: npt.NDArray[np.float32]) -> Bytes:
        return rtn.quantize(weight, self.format).pack()["data"]


def _quantize_rows(
    tensor: OutputTensor, encode: _PlainEncoder | _FormatEncoder, start: int, stop: int
) -> Bytes:
    weight = tensor.source.rows(start, stop)
    if not np.isfinite(weight).all():
        raise not_finite(tensor)
    return np.ascontiguousarray(encode(weight)).reshape(-1)


def _copy_rows(source: StoredTensor, start: int, stop: int) -> Bytes:
    return np.ascontiguousarray(source.raw(start, stop)).reshape(-1)


def _task(tensor: OutputTensor, choice: TensorChoice) -> Callable[[int, int], Bytes]:
    """What turns rows start … stop into bytes: a copy where the source already has the format, exactly."""
    if isinstance(tensor.source, StoredTensor) and tensor.source.dtype == choice.format not in PLAIN:
        return partial(_copy_rows, tensor.source)
    return partial(_quantize_rows, tensor, _encoder(tensor, choice))


def not_finite(tensor: OutputTensor) -> CheckpointError:
    """The error for a tensor with NaN or infinity, with how many of each there are."""
    nan = inf = 0
    for chunk in tensor.source.chunks(CHUNK_ELEMENTS):
        nan += int(np.isnan(chunk).sum())
        inf += int(np.isinf(chunk).sum())
    source = "" if tensor.source.name == tensor.name else f" (from {tensor.source.name})"
    return CheckpointError(
        f"the tensor {tensor.name}{source} has weights that aren't finite",
        found=f"{nan:,} NaN, {inf:,} infinite",
        action="The checkpoint is damaged or training diverged: take an intact copy",
    )  # fmt: skip
