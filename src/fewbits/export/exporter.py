"""The interface of a container that fewbits can write. One file (or folder) per container implements it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from fewbits.checkpoint.checkpoint import Checkpoint, LazyTensor


@dataclass(frozen=True)
class OutputTensor:
    """One tensor of the file to be written.

    Attributes:
        name: in the container's own naming, e.g. ``blk.0.attn_q.weight``.
        source: the numbers, already permuted, stacked or shifted as the container wants them.
        role: ``embedding``, ``head`` (``embedding`` when tied), ``linear`` or ``other``.
        quantizable: False for what the runtime needs in floating point (norms, biases, routers).
        plain: dtype it is stored in when it isn't quantized, e.g. ``F32``.
        block: index of the transformer block it belongs to, or None.
    """

    name: str
    source: LazyTensor
    role: str
    quantizable: bool
    plain: str = "F32"
    block: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in NumPy's order."""
        return self.source.shape


@dataclass(frozen=True)
class Region:
    """Where one tensor lies in the file: absolute offset and length in bytes."""

    offset: int
    nbytes: int


@dataclass(frozen=True)
class Layout:
    """The file before any number is computed: its header and where each tensor goes.

    Attributes:
        header: bytes at offset 0, everything up to the first tensor.
        regions: by tensor name, in file order.
        size: of the whole file in bytes.
    """

    header: bytes
    regions: Mapping[str, Region]
    size: int


class Exporter(ABC):
    """Writes one container. `formats` are the names that a plan for it may use, from most to fewest bits."""

    name: str
    formats: tuple[str, ...]
    plain_formats: tuple[str, ...] = ("F32", "F16", "BF16")
    alignment: int = 1  # tensors begin at multiples of it

    @abstractmethod
    def tensors(self, checkpoint: Checkpoint) -> list[OutputTensor]:
        """What the file will hold, in file order.

        Raises:
            ArchitectureError: the container has no place for this model.
        """

    @abstractmethod
    def metadata(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """What the file will say about the model, tokenizer and chat template included."""

    def notes(self, checkpoint: Checkpoint) -> tuple[str, ...]:
        """What the runtime does otherwise than the model's authors, for the user to know."""
        del checkpoint
        return ()

    @abstractmethod
    def layout(
        self, tensors: list[OutputTensor], formats: Mapping[str, str], metadata: Mapping[str, Any]
    ) -> Layout:
        """Header and exact offsets for these formats (tensor name -> format or plain dtype)."""

    @abstractmethod
    def first_block(
        self, tensors: list[OutputTensor], metadata: Mapping[str, Any]
    ) -> tuple[list[OutputTensor], dict[str, Any]]:
        """A model of one transformer block, cut from this one, that the runtime can load: for dry runs."""

    @abstractmethod
    def read_back(self, stream: BinaryIO) -> Layout:
        """Parse a written file's header again, for the check before it gets its name."""
