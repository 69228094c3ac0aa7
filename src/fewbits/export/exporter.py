"""The interface of a container that fewbits can write. One file (or folder) per container implements it."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fewbits.algorithms.static_scales import DEFAULT_RULE
from fewbits.calibration.statistics import Statistics
from fewbits.checkpoint.checkpoint import Checkpoint, Floats, LazyTensor
from fewbits.checkpoint.source import open_checkpoint
from fewbits.errors import PlanError
from fewbits.formats.activation_grid import ActivationGrid, integer_grid

# Name of the one part of tensors that the container holds as one run of bytes.
WHOLE = "data"
# Name of the one file of a container that isn't a folder.
ITSELF = ""


@dataclass(frozen=True)
class OutputTensor:
    """One tensor of the artifact to be written.

    Attributes:
        name: in the container's own naming, e.g. ``blk.0.attn_q.weight``.
        source: the numbers, already permuted, stacked or shifted as the container wants them.
        role: ``embedding``, ``head`` (``embedding`` when tied), ``linear`` or ``other``.
        quantizable: False for what the runtime needs in floating point (norms, biases, routers).
        plain: dtype it is stored in when it isn't quantized, e.g. ``F32``.
        block: index of the transformer block it belongs to, or None.
        fused: names of the tensors, itself included, that runtimes make one matrix of, in the order of its rows and
            with one scale where a format has a scale of the whole tensor; () where it stays alone.
        input_scale: of a format's name, the number that `Exporter.input_scale` finds; None without calibration.
    """

    name: str
    source: LazyTensor
    role: str
    quantizable: bool
    plain: str = "F32"
    block: int | None = None
    fused: tuple[str, ...] = ()
    input_scale: Callable[[str], float] | None = field(default=None, compare=False, repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in NumPy's order."""
        return self.source.shape

    @property
    def extent(self) -> tuple[int, int]:
        """Rows and columns that a format's blocks must divide; 0 rows where the last of them may be cut.

        A runtime that makes one matrix of several lays their scales one after another, and so all but the last must
        end where a block ends.
        """
        rows, columns = self.source.matrix
        return (rows if self.name in self.fused[:-1] else 0), columns


@dataclass(frozen=True)
class Region:
    """Where one part of a tensor lies.

    Attributes:
        offset: from the start of the file, in bytes.
        nbytes: length.
        file: name within the artifact.
        content: its bytes where they don't depend on the weights; None where they are made from them.
        repeated: every chunk of the tensor holds the whole part, rather than the next bytes of it.
        lines: rows of the part where chunks hold the next columns of each of them rather than the next bytes, because
            the container has the matrix transposed; else 0.
    """

    offset: int
    nbytes: int
    file: str = ITSELF
    content: bytes | None = None
    repeated: bool = False
    lines: int = 0


@dataclass(frozen=True)
class OutputFile:
    """One file before any number is computed.

    Attributes:
        header: bytes at offset 0, everything up to the first tensor; the whole of a file without tensors.
        size: of the whole file in bytes.
    """

    header: bytes
    size: int


@dataclass(frozen=True)
class Layout:
    """The artifact before any number is computed: its files, and where each part of each tensor goes.

    Attributes:
        files: by name within the artifact; one under the name `ITSELF` where the artifact is a file.
        parts: tensor name -> part name -> region. Parts are those that a format's `pack` gives; of a tensor in
            floating point there is one, `WHOLE`.
    """

    files: Mapping[str, OutputFile]
    parts: Mapping[str, Mapping[str, Region]]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())

    @property
    def header_nbytes(self) -> int:
        """Bytes that aren't tensors' in all files."""
        return sum(len(file.header) for file in self.files.values())

    @property
    def sha256(self) -> str:
        """Of everything in here, hexadecimal."""
        digest = hashlib.sha256()
        for name, file in self.files.items():
            digest.update(f"{name}\0{file.size}\0{len(file.header)}\0".encode())
            digest.update(file.header)
        return digest.hexdigest()


class Exporter(ABC):
    """Writes one container.

    Attributes:
        name: what ``--to`` calls it.
        folder: whether an artifact is a folder of files rather than one file.
        formats: the names that a plan for it may use, from most to fewest bits.
        planned: those of them that fewbits chooses from by itself: what all its runtimes compute; () for all.
        default_format: the goal when none is given.
        plain_formats: dtypes that tensors may stay in.
        alignment: tensors begin at multiples of it.
        fallbacks: whether tensors whose rows a format's block doesn't divide may have its fallback while others have
            the format: not where the container, or a runtime that it is for, knows one format in a model.
        head_formats: format of layers -> format of the embedding and the head beside them, where it is another.
        kv_caches: names of quantized key-value caches that it has scales for.
        hardware: what `formats` and `planned` are restricted to; "" for nothing.
    """

    name: str
    folder: bool = False
    formats: tuple[str, ...]
    planned: tuple[str, ...] = ()
    default_format: str
    plain_formats: tuple[str, ...] = ("F32", "F16", "BF16")
    alignment: int = 1
    fallbacks: bool = True
    head_formats: Mapping[str, str] = MappingProxyType({})
    kv_caches: tuple[str, ...] = ()
    hardware: str = ""

    @abstractmethod
    def tensors(self, checkpoint: Checkpoint) -> list[OutputTensor]:
        """What the artifact will hold, in order.

        Raises:
            ArchitectureError: the container has no place for this model.
        """

    @abstractmethod
    def metadata(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """What the artifact will say about the model, tokenizer and chat template included."""

    def notes(self, checkpoint: Checkpoint, formats: Mapping[str, str]) -> tuple[str, ...]:
        """What the user should know of runtimes: what they do otherwise than the model's authors, or can't do.

        `formats` are those chosen, by tensor name.
        """
        del checkpoint, formats
        return ()

    @property
    def candidates(self) -> tuple[str, ...]:
        """The formats that fewbits chooses from by itself."""
        return self.planned or self.formats

    def activation_block(self, format_name: str) -> int:
        """Activations that share a scale where the runtime rounds the inputs of such weights to 8 bits, or 0."""
        del format_name
        return 0

    def activation_grid(self, format_name: str) -> ActivationGrid | None:
        """How the runtime rounds the inputs of such weights; None if it doesn't."""
        block = self.activation_block(format_name)
        return integer_grid(8, block) if block else None

    def input_scale(self, format_name: str, statistics: Statistics, rule: str = DEFAULT_RULE) -> float:
        """The number that the file holds for all inputs of a map, where the format has one.

        `rule` is one of `algorithms.static_scales`, by which it is chosen where there is a choice.

        Raises:
            PlanError: it has none.
        """
        del statistics, rule
        raise PlanError(f"{format_name} has no scale of activations in {self.name}")

    def tied(self, tensors: Iterable[OutputTensor]) -> list[list[str]]:
        """Groups of tensors that must get the same format, because runtimes compute them as one."""
        del tensors
        return []

    @abstractmethod
    def layout(
        self, tensors: list[OutputTensor], formats: Mapping[str, str], metadata: Mapping[str, Any]
    ) -> Layout:
        """Headers and exact offsets for these formats (tensor name -> format or plain dtype)."""

    def header_nbytes(self, tensors: list[OutputTensor], formats: Mapping[str, str], plan: str) -> int:
        """Bytes that the choice of formats decides, besides those of the formats themselves.

        `plan` is the choice as text, which the artifact holds as provenance.
        """
        del tensors, formats
        return len(plan)

    @abstractmethod
    def first_block(
        self, tensors: list[OutputTensor], metadata: Mapping[str, Any]
    ) -> tuple[list[OutputTensor], dict[str, Any]]:
        """A model of one transformer block, cut from this one, that the runtime can load: for dry runs."""

    @abstractmethod
    def parameters(
        self, tensors: Mapping[str, LazyTensor], metadata: Mapping[str, Any], wanted: Iterable[str]
    ) -> Mapping[str, LazyTensor]:
        """Parameters of transformers' model, by its names, made of the container's tensors.

        Statistics are gathered under these names. At least those of `wanted` that there are.
        """

    @abstractmethod
    def read_back(self, path: Path) -> Layout:
        """Parse a written artifact's headers again; what parts hold isn't looked at.

        Raises:
            VerificationError: it doesn't read back.
        """

    @abstractmethod
    def recognises(self, stored: Checkpoint) -> bool:
        """Whether an artifact, its tensors as they lie in the files, is this container's."""

    def cache_scale(self, attention: str, part: str, scales: Floats, block: int | None) -> OutputTensor:
        """The tensor of a layer's scales for its cache; for containers with `kv_caches`.

        Args:
            attention: the container's name of the module that caches.
            part: ``k`` or ``v``.
            scales: float32 [1], or [H] with one for each head.
            block: that the layer is.
        """
        raise NotImplementedError

    def written(self, path: Path) -> Mapping[str, LazyTensor]:
        """All tensors of a written artifact by name, as users' files are read.

        Raises:
            FewbitsError: it can't be read.
        """
        return open_checkpoint(path).tensors

    def foreign(self, path: Path) -> list[str]:
        """What an existing artifact holds that fewbits didn't put there, and so must not replace."""
        del path
        return []
