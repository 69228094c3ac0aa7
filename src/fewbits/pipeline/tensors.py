"""Quantizing tensors in row chunks on several threads, in order, with bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from fewbits.algorithms import imatrix
from fewbits.algorithms.registry import NONE, get_algorithm
from fewbits.checkpoint.checkpoint import StoredTensor
from fewbits.checkpoint.dtypes import PLAIN, encode_plain
from fewbits.errors import CheckpointError, NotFiniteError
from fewbits.export.exporter import WHOLE, OutputTensor
from fewbits.formats import Format, get_format
from fewbits.formats.format import Parts
from fewbits.formats.stored_rows import StoredRows, finite_float32
from fewbits.planning.plan import TensorChoice

if TYPE_CHECKING:
    from fewbits.pipeline.importance import Importance

# Chunks waiting to be written, per thread, so that threads don't idle while the writer writes.
WINDOW = 3

Bytes: TypeAlias = npt.NDArray[np.uint8]
PartBytes: TypeAlias = dict[str, Bytes]


@dataclass(frozen=True)
class Chunk:
    """Finished bytes of some rows of a tensor, in order, by part, with how many weights; `last` closes the tensor."""

    tensor: OutputTensor
    parts: PartBytes
    weights: int
    last: bool


def part_bytes(parts: Parts) -> PartBytes:
    """The arrays that a format's `pack` gives as they lie in a file."""
    return {name: np.ascontiguousarray(part).reshape(-1).view(np.uint8) for name, part in parts.items()}


@dataclass(frozen=True)
class Chunking:
    """How a tensor is cut for what is done with it; rows are never split.

    Attributes:
        elements: of a chunk, at most, if a row has no more.
        workspace: bytes that an element takes meanwhile.
        together: rows that a format packs together; a chunk has a multiple of them.
    """

    elements: int = Format.chunk
    workspace: int = Format.workspace
    together: int = 1

    @classmethod
    def of(cls, choice: TensorChoice) -> Chunking:
        """That of a tensor in a plan."""
        if choice.algorithm == NONE:
            return cls()
        fmt = get_format(choice.format)
        if get_algorithm(choice.algorithm).rounds:
            return cls(fmt.chunk, fmt.workspace, fmt.rows_together)
        return cls(together=fmt.rows_together)

    def rows(self, columns: int) -> int:
        """Rows in a chunk."""
        return max(self.together, self.elements // max(columns, 1) // self.together * self.together)

    def nbytes(self, tensor: OutputTensor) -> int:
        """Bytes that a thread holds at once, at most."""
        if not tensor.shape:
            return 0
        elements = min(self.rows(tensor.shape[-1]), tensor.source.matrix[0]) * tensor.shape[-1]
        return elements * (self.workspace + 8 * WINDOW)


def whole_rows(
    tensor: OutputTensor, tensors: Mapping[str, OutputTensor]
) -> Iterator[npt.NDArray[np.float32]]:
    """What `Format.prepare` looks at: the rows of a tensor and of those that it is fused with, float32 [n, K] each.

    vLLM takes the largest of the fused tensors' global scales for all of them, whatever the others were rounded with
    (process_weights_after_loading of its NVFP4 schemes, FP8 per tensor likewise); equal ones it takes as they are.
    """
    for name in tensor.fused or (tensor.name,):
        yield from tensors[name].source.chunks(Format.chunk)


def peak_workspace(tensors: Iterable[OutputTensor], choices: Mapping[str, TensorChoice], threads: int) -> int:
    """Bytes that the threads hold at once, at most."""
    return threads * max((Chunking.of(choices[t.name]).nbytes(t) for t in tensors), default=0)


def quantized_chunks(
    tensors: Iterable[OutputTensor],
    choices: Mapping[str, TensorChoice],
    threads: int,
    known: Mapping[str, OutputTensor],
    importance: Importance | None = None,
) -> Iterator[Chunk]:
    """The bytes of all tensors, chunk by chunk, in the order given.

    Those that the plan rounds by an importance matrix are weighted with what `importance` says of them. `known` are all
    tensors of the container by name, which these may be fused with.

    Raises:
        CheckpointError: a weight that isn't finite; the message counts them.
    """
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[OutputTensor, int, bool, Future[PartBytes]]] = deque()
        try:
            for tensor in tensors:
                rows, columns = tensor.source.matrix
                task = _task(tensor, choices[tensor.name], known, importance)
                step = Chunking.of(choices[tensor.name]).rows(columns)
                for start in range(0, max(rows, 1), step):  # once for an empty tensor
                    stop = min(start + step, rows)
                    waiting.append((tensor, stop - start, stop == rows, pool.submit(task, start, stop)))
                    if len(waiting) > WINDOW * threads:
                        yield _finish(*waiting.popleft())
            while waiting:
                yield _finish(*waiting.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _finish(tensor: OutputTensor, rows: int, last: bool, future: Future[PartBytes]) -> Chunk:
    return Chunk(tensor, future.result(), rows * tensor.shape[-1] if tensor.shape else 1, last)


class _PlainEncoder:
    """Rows to F32, F16 or BF16 bytes, rounded to nearest even."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype

    def __call__(self, rows: StoredRows, start: int = 0) -> PartBytes:
        del start
        return {WHOLE: encode_plain(self.dtype, finite_float32(rows, self.dtype)).reshape(-1)}


def _encoder(
    tensor: OutputTensor,
    choice: TensorChoice,
    known: Mapping[str, OutputTensor],
    importance: Importance | None,
) -> _PlainEncoder | _FormatEncoder:
    if choice.algorithm == NONE:
        return _PlainEncoder(choice.format)
    weighting = importance if choice.algorithm == imatrix.NAME else None
    return _FormatEncoder(choice, tensor, known, weighting)


class _FormatEncoder:
    """Rows, the first of them row `start` of the tensor, to a quantized format's bytes."""

    def __init__(
        self,
        choice: TensorChoice,
        tensor: OutputTensor,
        known: Mapping[str, OutputTensor],
        importance: Importance | None,
    ) -> None:
        self.format = get_format(choice.format).prepare(whole_rows(tensor, known))
        self.algorithm = get_algorithm(choice.algorithm)
        self.weights = importance.of(tensor) if importance else None

    def __call__(self, rows: StoredRows, start: int) -> PartBytes:
        weights = self.weights(start, start + len(rows)) if self.weights else None
        return part_bytes(self.algorithm.quantize_rows(rows, self.format, weights))


def _quantize_rows(
    tensor: OutputTensor, encode: _PlainEncoder | _FormatEncoder, start: int, stop: int
) -> PartBytes:
    try:
        return encode(tensor.source.stored_rows(start, stop), start)
    except NotFiniteError:
        raise not_finite(tensor) from None


def _copy_rows(source: StoredTensor, start: int, stop: int) -> PartBytes:
    return {WHOLE: np.ascontiguousarray(source.raw(start, stop)).reshape(-1)}


def _task(
    tensor: OutputTensor,
    choice: TensorChoice,
    known: Mapping[str, OutputTensor],
    importance: Importance | None,
) -> Callable[[int, int], PartBytes]:
    """What turns rows start … stop into bytes: a copy where the source already has the format, exactly."""
    if isinstance(tensor.source, StoredTensor) and tensor.source.dtype == choice.format not in PLAIN:
        return partial(_copy_rows, tensor.source)
    return partial(_quantize_rows, tensor, _encoder(tensor, choice, known, importance))


def not_finite(tensor: OutputTensor) -> CheckpointError:
    """The error for a tensor with NaN or infinity, with how many of each there are."""
    nan = inf = 0
    for chunk in tensor.source.chunks(Format.chunk):
        nan += int(np.isnan(chunk).sum())
        inf += int(np.isinf(chunk).sum())
    source = "" if tensor.source.name == tensor.name else f" (from {tensor.source.name})"
    return CheckpointError(
        f"the tensor {tensor.name}{source} has weights that aren't finite",
        found=f"{nan:,} NaN, {inf:,} infinite",
        action="The checkpoint is damaged or training diverged: take an intact copy",
    )  # fmt: skip
