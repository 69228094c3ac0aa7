"""Hidden states and gradients at the boundaries of blocks, in files, so that a killed calibration goes on.

Plain reads and writes rather than a mapping: mapped pages would count as the process's memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor


class Boundaries:
    """Files of bfloat16 [B, S, D], one per boundary; a file is there when it is whole.

    Attributes:
        folder: where they lie.
        shape: B sequences, S positions, D width of the hidden state.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int]) -> None:
        self.folder = folder
        self.shape = shape
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def nbytes(self) -> int:
        """Of one file."""
        return 2 * self.shape[0] * self.shape[1] * self.shape[2]

    def has(self, kind: str, index: int) -> bool:
        """Whether a boundary was written to its end."""
        return self._path(kind, index).is_file()

    def read(self, kind: str, index: int, start: int, stop: int) -> Tensor:
        """Sequences start … stop, float32 [stop - start, S, D]."""
        row = self.shape[1] * self.shape[2]
        with self._path(kind, index).open("rb") as file:
            file.seek(2 * start * row)
            data = bytearray(file.read(2 * (stop - start) * row))
        numbers = torch.frombuffer(data, dtype=torch.bfloat16)
        return numbers.reshape(stop - start, *self.shape[1:]).float()

    @contextmanager
    def writing(self, kind: str, index: int) -> Iterator[Callable[[Tensor], None]]:
        """A function that appends sequences; the file gets its name when the context ends well."""
        path = self._path(kind, index)
        part = path.with_suffix(".part")
        with part.open("wb") as file:

            def append(sequences: Tensor) -> None:
                numbers = sequences.detach().to(torch.bfloat16).contiguous()
                file.write(numbers.view(torch.uint8).numpy().data)

            yield append
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)

    def remove(self, kind: str, index: int) -> None:
        """Delete a boundary that isn't needed any more."""
        self._path(kind, index).unlink(missing_ok=True)

    def _path(self, kind: str, index: int) -> Path:
        return self.folder / f"{kind}-{index:04d}.bf16"
