"""The interface of a container that only its runtime's own library can write: a graph with our numbers in it.

    model ──► quantize ──► a directory of safetensors files ──► convert ──► the runtime's folder
                           (`Converter.intermediate`)

Quantizing, planning, calibrating and resuming are those of the directory. Converting chooses no code and no scale: it
builds the runtime's graph with the runtime's library and puts the directory's numbers in place of the library's own.
One file (or folder) per container implements it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from fewbits.checkpoint.checkpoint import Checkpoint, LazyTensor
from fewbits.checkpoint.converted import foreign_files
from fewbits.export.exporter import Exporter
from fewbits.progress import Progress


class Converter(ABC):
    """Writes one container by its runtime's library.

    Attributes:
        name: what ``--to`` calls it.
        intermediate: writes the directory that is converted; its formats, roles and default are those of ``--to``.
        extra: the extra of fewbits that installs the library, as in ``pip install fewbits[extra]``.
        packages: what can be imported once it is installed.
        folder: an artifact is a folder of files, with fewbits.json in it.
    """

    folder: ClassVar[bool] = True

    name: str
    intermediate: Exporter
    extra: str
    packages: tuple[str, ...]

    @abstractmethod
    def check(self, checkpoint: Checkpoint) -> None:
        """Refuse, before work starts, what the container has no place for.

        Args:
            checkpoint: the model to be quantized, or the quantized directory.

        Raises:
            ArchitectureError: a model, a shape or a kind of layer, with the reason and the nearest thing that works.
        """

    @abstractmethod
    def convert(self, quantized: Checkpoint, output: Path, progress: Progress) -> None:
        """Write the container's files into the empty folder `output`.

        Args:
            quantized: the directory, whose quantized weights are `PackedTensor`s.
            output: folder; it gets its final name later, when `weights` has been compared, and fewbits.json, which is
                the pipeline's.
            progress: receives what is being done.

        Raises:
            ExportError: the library couldn't, with what it said.
        """

    @abstractmethod
    def weights(self, output: Path) -> Mapping[str, LazyTensor]:
        """What the written weights are to the runtime, by the quantized directory's names: read from its files.

        At least every quantized one. They are compared with the directory's before the output gets its name: quantized
        ones bit for bit, others within the rounding of a dtype of 16 bits. `fewbits verify` runs the model with them,
        for which it needs all whose numbers can differ from the original's: norms too, where channels were rescaled.

        Raises:
            VerificationError: the files don't read back.
        """

    def foreign(self, path: Path) -> list[str]:
        """What an existing folder holds that fewbits didn't put there, and so must not replace."""
        return foreign_files(path)
