"""llama.cpp's importance matrices in their GGUF form, read and written.

    general.type          "imatrix"
    imatrix.datasets      array of strings: the texts
    imatrix.chunk_count   u32: chunks of text
    imatrix.chunk_size    u32: tokens of a chunk
    TENSOR.in_sum2        F32 [E, K]: sum over tokens of each input's square, of each expert (E = 1 without)
    TENSOR.counts         F32 [E, 1]: tokens in that sum

(llama.cpp: tools/imatrix/README.md, common/imatrix-loader.) llama-quantize weights each column by
in_sum2 / counts, and the counts of experts don't matter otherwise.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fewbits.checkpoint.checkpoint import Checkpoint
from fewbits.checkpoint.gguf import open_gguf
from fewbits.errors import CalibrationError, OutputError

Floats = npt.NDArray[np.float32]
Entry = tuple[Floats, Floats]

_SUMS, _COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True)
class ImportanceMatrix:
    """Sums of squared inputs of a GGUF model's matrices.

    Attributes:
        entries: GGUF tensor name -> sums float32 [K] or of experts [E, K], and counts float32 [1] or [E].
        datasets: names of the texts.
        chunk_count: chunks of text that were read.
        chunk_size: tokens of each.
    """

    entries: Mapping[str, Entry]
    datasets: Sequence[str] = ()
    chunk_count: int = 0
    chunk_size: int = 0

    def importance(self, name: str) -> Floats:
        """The mean square of each input column, float32 [K] or [E, K]; 1 for experts that saw no token.

        Raises:
            CalibrationError: there is no entry for the tensor.
        """
        if name not in self.entries:
            raise CalibrationError(
                f"the importance matrix has nothing for {name}", found=f"{len(self.entries)} tensors"
            )
        sums, counts = self.entries[name]
        counts = counts if sums.ndim == 1 else counts[:, None]
        return np.where(counts > 0, sums / np.maximum(counts, 1), 1).astype(np.float32)


def read_imatrix(path: str | Path) -> ImportanceMatrix:
    """Read an importance matrix in GGUF form.

    Raises:
        CheckpointError: the file isn't GGUF, or is damaged.
        CalibrationError: it is something else than an importance matrix, or holds numbers that can't be sums.
    """
    path = Path(path)
    _require_gguf(path)
    checkpoint = open_gguf(path)
    kind = checkpoint.metadata.get("general.type")
    if kind != "imatrix":
        raise CalibrationError(
            f"{path} is no importance matrix", found=f"general.type {kind!r}", allowed="'imatrix'"
        )
    names = {name.removesuffix(_SUMS) for name in checkpoint.tensors if name.endswith(_SUMS)}
    counted = {name.removesuffix(_COUNTS) for name in checkpoint.tensors if name.endswith(_COUNTS)}
    if names != counted or not names:
        odd = sorted(names ^ counted)[:3]
        raise CalibrationError(
            f"{path} is a damaged importance matrix",
            found=f"sums or counts alone of {', '.join(odd)}" if odd else "no sums",
        )
    entries = _StoredEntries(checkpoint, sorted(names))
    for name in entries:
        entries[name]  # all are checked before any is used
    return ImportanceMatrix(
        entries,
        [str(text) for text in checkpoint.metadata.get("imatrix.datasets", ())],
        int(checkpoint.metadata.get("imatrix.chunk_count", 0)),
        int(checkpoint.metadata.get("imatrix.chunk_size", 0)),
    )


class _StoredEntries(Mapping[str, Entry]):
    """Entries that are read when they are asked for: those of many experts would fill the memory."""

    def __init__(self, checkpoint: Checkpoint, names: Sequence[str]) -> None:
        self._checkpoint = checkpoint
        self._names = dict.fromkeys(names)

    def __getitem__(self, name: str) -> Entry:
        if name not in self._names:
            raise KeyError(name)
        sums, counts = (self._checkpoint.tensors[name + suffix].read() for suffix in (_SUMS, _COUNTS))
        return _entry(self._checkpoint.path, name, np.atleast_2d(sums), counts.reshape(-1))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


def _require_gguf(path: Path) -> None:
    """Refuse what llama-imatrix wrote before it wrote GGUF; other errors are the reader's.

    Raises:
        CalibrationError: another kind of file.
    """
    with suppress(OSError), path.open("rb") as file:
        if (magic := file.read(4)) != b"GGUF":
            raise CalibrationError(
                f"{path} is no importance matrix in GGUF form", found=f"a file that begins with {magic!r}",
                action=f"If it is one in llama.cpp's older form: llama-imatrix --in-file {path} -o NEW.gguf",
            )  # fmt: skip


def _entry(path: Path, name: str, sums: Floats, counts: Floats) -> Entry:
    sums = sums.reshape(-1, sums.shape[-1])
    if len(sums) != len(counts):
        found = f"{len(sums)} sums and {len(counts)} counts of {name}"
    elif not (
        np.isfinite(sums).all() and np.isfinite(counts).all() and (sums >= 0).all() and (counts >= 0).all()
    ):
        found = f"{name} with numbers that are negative or not finite"
    else:
        return (sums[0] if len(sums) == 1 else sums), counts
    raise CalibrationError(f"{path} is a damaged importance matrix", found=found)


def write_imatrix(path: str | Path, matrix: ImportanceMatrix) -> None:
    """Write an importance matrix that llama-quantize reads; the file appears when it is whole.

    Raises:
        OutputError: the file can't be written.
    """
    from gguf import GGUFWriter

    path = Path(path)
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
        os.close(descriptor)
        temporary = Path(name)
        try:
            writer = GGUFWriter(temporary, "")
            # Importance matrices have no architecture; the writer sets the key unasked.
            writer.kv_data[0].pop("general.architecture", None)
            writer.add_type("imatrix")
            writer.add_array("imatrix.datasets", list(matrix.datasets) or ["unknown"])
            writer.add_uint32("imatrix.chunk_count", matrix.chunk_count)
            writer.add_uint32("imatrix.chunk_size", matrix.chunk_size)
            for tensor, (sums, counts) in sorted(matrix.entries.items()):
                rows = np.ascontiguousarray(np.atleast_2d(sums), dtype=np.float32)
                writer.add_tensor(tensor + _SUMS, rows)
                writer.add_tensor(tensor + _COUNTS, counts.reshape(-1, 1).astype(np.float32))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OutputError(f"can't write {path}", found=error.strerror or str(error)) from error
