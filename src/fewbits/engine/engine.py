"""A GGUF file, opened by the native engine: token numbers in, logits out."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from fewbits import _native
from fewbits.checkpoint.byte_range import unreadable
from fewbits.checkpoint.checkpoint import Checkpoint, Floats
from fewbits.checkpoint.file_tensor import FileTensor
from fewbits.checkpoint.gguf import open_gguf
from fewbits.checkpoint.gguf_constants import GGML_TYPES
from fewbits.engine.description import Description, describe
from fewbits.errors import EngineError
from fewbits.operating_system import usable_cores

KvCache: TypeAlias = Literal["f16", "q8", "q4"]
Numbers: TypeAlias = Sequence[int] | npt.NDArray[np.integer[Any]]


class Engine:
    """A model and what its sequences have read.

    A sequence is a slot with a number, whose keys and values stay until they are truncated. One step at a time: calls
    from several threads wait for each other.

    Attributes:
        vocabulary: number of tokens, V.
        context: positions that a sequence may hold.
        sequences: slots, numbered from 0.
        threads: that compute.
        metadata: of the GGUF file.
        description: what the engine was told of the model.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        description: Description,
        *,
        threads: int,
        sequences: int,
        kv_cache: KvCache,
    ) -> None:
        self.vocabulary: int = description.config["vocabulary"]
        self.context = description.context
        self.sequences = sequences
        self.threads = threads
        self.metadata: Mapping[str, Any] = checkpoint.metadata
        self.description = description
        maps = {path: _mapped(path) for path in checkpoint.files}
        tensors = {name: _tensor(tensor, maps) for name, tensor in checkpoint.tensors.items()}
        with _refused(f"{checkpoint.path} can't be run"):
            self._native = _native.Engine(
                description.config, tensors, threads, self.context, sequences, kv_cache, mapped=True
            )
        self._maps = maps  # the embedding is read from the file

    def step(self, sequences: Numbers, tokens: Numbers, wanted: Numbers) -> Floats:
        """Append tokens to their sequences, all as one batch.

        Args:
            sequences: [N], the slot of each token; tokens of one slot follow what it holds, in this order.
            tokens: [N].
            wanted: [M], ascending places among the N, after which the next token's logits are wanted.

        Returns:
            Logits, float32 [M, V]. What a sequence gets doesn't depend on what else is in the batch.

        Raises:
            EngineError: a token or slot that there isn't, a sequence longer than the context, or no memory; nothing
                has changed.
        """
        with _refused("the tokens can't be read"):
            return self._native.step(*(_integers(numbers) for numbers in (sequences, tokens, wanted)))

    def choose(
        self, samplers: Sequence[_native.Sampler], logits: Floats, recents: Sequence[npt.NDArray[np.int32]]
    ) -> list[int]:
        """Choose a token for each of M answers, all threads together.

        Args:
            samplers: [M], all different.
            logits: float32 [M, V].
            recents: M times int32 [N], the tokens so far, as `Sampler.choose` takes them.

        Returns:
            What each sampler's own `choose` would return; -1 where no logit is finite.

        Raises:
            EngineError: the numbers don't fit together, or there is no memory.
        """
        with _refused("no tokens can be chosen"):
            return self._native.choose(samplers, logits, recents)

    def length(self, sequence: int) -> int:
        """Positions that a slot holds.

        Raises:
            EngineError: there is no such slot.
        """
        with _refused("a sequence has no length"):
            return self._native.length(sequence)

    def truncate(self, sequence: int, length: int) -> None:
        """Forget what a slot holds from position `length` on.

        Raises:
            EngineError: it holds fewer.
        """
        with _refused("nothing can be forgotten there"):
            self._native.truncate(sequence, length)

    def copy(self, source: int, target: int, length: int) -> None:
        """Make the first `length` positions of one slot all that another holds.

        Raises:
            EngineError: the source holds fewer.
        """
        with _refused("a sequence can't be copied"):
            self._native.copy(source, target, length)

    @property
    def memory_bytes(self) -> int:
        """Memory held beyond the mapped file."""
        return self._native.bytes


def open_engine(
    path: str | Path,
    *,
    threads: int | None = None,
    context: int | None = None,
    sequences: int = 1,
    kv_cache: KvCache = "f16",
) -> Engine:
    """Open a GGUF file for running it.

    Args:
        path: the file, or one of its shards.
        threads: None for those that this process may use.
        context: positions of a sequence; None for what the model was made for, 4096 at most. Memory is used only
            as far as a sequence reaches.
        sequences: how many can be held at once.
        kv_cache: keys and values as float16, or rounded to 8 or 4 bits in blocks of 16.

    Raises:
        CheckpointError: not a GGUF file that can be read.
        EngineError: an architecture or a type of tensor that the engine doesn't know, settings out of range, or no
            memory for them.
    """
    if kv_cache not in get_args(KvCache):
        raise EngineError("no such key-value cache", found=kv_cache, allowed=", ".join(get_args(KvCache)))
    for what, value in (("threads", threads), ("context", context), ("sequences", sequences)):
        if value is not None and value < 1:
            raise EngineError(f"{what} must be positive", found=value, allowed="1 or more")
    checkpoint = open_gguf(Path(path))
    description = describe(checkpoint, context)
    return Engine(
        checkpoint,
        description,
        threads=threads or usable_cores(),
        sequences=sequences,
        kv_cache=kv_cache,
    )


@contextmanager
def _refused(what: str) -> Iterator[None]:
    """What the native side throws, in words."""
    try:
        yield
    except MemoryError as error:
        raise EngineError(
            "there isn't enough memory",
            found=str(error),
            action="A shorter context, fewer sequences or kv_cache q8 or q4 need less",
        ) from error
    except TypeError as error:  # a negative number, or none
        raise EngineError(what, found="something that isn't a number from 0 on") from error
    except ValueError as error:
        raise EngineError(what, found=str(error)) from error


def _integers(numbers: Numbers) -> npt.NDArray[np.int32]:
    """As int32 [N].

    Raises:
        ValueError: something else than a list of integers of 32 bits.
    """
    array = np.asarray(numbers)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError("tokens, sequences and wanted places must be lists of integers")
    if array.size and not (array.min() >= -(1 << 31) and array.max() < 1 << 31):
        raise ValueError("a number of more than 32 bits")
    return np.ascontiguousarray(array, np.int32)


def _mapped(path: Path) -> npt.NDArray[np.uint8]:
    """A file's bytes."""
    try:
        with path.open("rb") as file:
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except OSError as error:
        raise unreadable(path, error) from error


def _tensor(tensor: Any, maps: Mapping[Path, npt.NDArray[np.uint8]]) -> tuple[int, int, int, Any]:
    """Type, columns, rows and bytes."""
    assert isinstance(tensor, FileTensor)  # of a GGUF file
    rows, columns = tensor.matrix
    data = maps[tensor.path][tensor.offset : tensor.offset + tensor.nbytes]
    return GGML_TYPES[tensor.dtype].number, columns, rows, data
