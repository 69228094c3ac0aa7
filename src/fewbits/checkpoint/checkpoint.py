"""A model on disk, read lazily: names, shapes and rows of tensors, never a whole model in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from fewbits.formats.stored_rows import StoredRows


Floats: TypeAlias = npt.NDArray[np.float32]


class LazyTensor(ABC):
    """A tensor whose numbers are read when asked for, row by row.

    A tensor of any rank is seen as a matrix [N, K]: K the last dimension, N the product of the others
    (1 for vectors).

    Attributes:
        name: its name in the checkpoint.
        shape: in NumPy's order, last dimension contiguous (GGUF files list theirs in reverse).
        dtype: name of the stored type, e.g. ``BF16``, ``F8_E4M3`` or ``Q4_K``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def matrix(self) -> tuple[int, int]:
        """The shape as [N, K]; N is 0 for a tensor without numbers."""
        if not self.shape:
            return 1, 1
        if 0 in self.shape:
            return 0, self.shape[-1]
        return prod(self.shape[:-1]), self.shape[-1]

    @abstractmethod
    def rows(self, start: int, stop: int) -> Floats:
        """Rows start … stop of the matrix, as float32 [stop - start, K], a fresh array."""

    def stored_rows(self, start: int, stop: int) -> StoredRows:
        """The same rows as they are stored where that is a type of 16 bits; else as float32."""
        return self.rows(start, stop)

    def read(self) -> Floats:
        """The whole tensor as float32, in its own shape."""
        return self.rows(0, self.matrix[0]).reshape(self.shape)

    def chunks(self, elements: int) -> Iterator[Floats]:
        """All rows in order, in pieces of at most `elements` numbers (at least one row)."""
        n, k = self.matrix
        step = max(1, elements // max(k, 1))
        for start in range(0, n, step):
            yield self.rows(start, min(start + step, n))


class SizedTensor(LazyTensor):
    """A tensor of which it is known how many bytes hold it."""

    nbytes: int


class StoredTensor(SizedTensor):
    """A tensor as it lies in a file; `raw` gives its bytes without decoding."""

    @abstractmethod
    def raw(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Bytes of rows start … stop, uint8 [stop - start, bytes per row]."""


@dataclass(frozen=True)
class Checkpoint:
    """A model's tensors and what its files say about it.

    Attributes:
        path: the directory or the GGUF file.
        container: ``safetensors``, ``gguf`` or ``onnx``.
        tensors: by name, in the order of the file. Scales that belong to FP8 weights are already applied.
        files: every file that holds tensors, in order; what `content_hash` covers, with config files.
        config: config.json of a Hugging Face directory, {} for GGUF.
        metadata: key-value metadata of a GGUF file; texts in the headers of safetensors files.
        metadata_types: by key of `metadata`, its value type and, for arrays, its elements' type
            (numbers of `gguf_constants.ValueType`), so that metadata can be written again unchanged.
        warnings: what the user should know about this source, e.g. that it is already quantized.
    """

    path: Path
    container: str
    tensors: Mapping[str, LazyTensor]
    files: tuple[Path, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    metadata_types: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
