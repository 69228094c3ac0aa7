"""From a quantized directory to what only a runtime's library can write; resumable up to the library's own work.

Beside OUTPUT lie, until it is whole:

    OUTPUT.fewbits-quantized     the directory, once it is quantized; before that what `journal` says, under its name
    OUTPUT.fewbits-conversion    {"run": <hash of everything that decides its bytes>}
    OUTPUT.fewbits-part          the folder that the library is writing; it is begun anew when that was interrupted
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from fewbits.checkpoint.checkpoint import Checkpoint, LazyTensor, SizedTensor, StoredTensor
from fewbits.checkpoint.converted import DESCRIPTION, VECTORS, ConvertedTensor, Description
from fewbits.checkpoint.packed import PackedTensor
from fewbits.checkpoint.source import open_checkpoint
from fewbits.errors import OutputError, ResumeError, VerificationError
from fewbits.export.converter import Converter
from fewbits.export.hugging_face.safetensors_files import Array, place_arrays
from fewbits.operating_system import lock_file
from fewbits.pipeline.journal import part_path, replace_folder, replaced_path
from fewbits.planning.byte_size import format_bytes
from fewbits.progress import Progress

_CHUNK = 1 << 20  # weights compared at once
# What isn't quantized may be held in another dtype of 16 bits.
_PLAIN_ROUNDING = 2.0**-8


def directory_path(output: Path) -> Path:
    """Where the quantized directory lies that is converted."""
    return output.with_name(output.name + ".fewbits-quantized")


def conversion_path(output: Path) -> Path:
    """Where it is noted which run the directory belongs to."""
    return output.with_name(output.name + ".fewbits-conversion")


def claim_directory(output: Path, run: str, converter: Converter, *, discard: bool) -> bool:
    """Note whose the directory is that is about to be made; whether it is there already, whole.

    Args:
        output: the folder to be made in the end.
        run: identity of the job that makes the directory.
        converter: that will read it.
        discard: begin anew when the work on disk belongs to another job, instead of refusing.

    Raises:
        ResumeError: the work on disk belongs to another job.
        OutputError: something else has the directory's name.
    """
    note, directory = conversion_path(output), directory_path(output)
    noted = _noted(note)
    if noted is not None and noted != run and not discard:
        raise ResumeError(
            f"{note} belongs to a run with another source, plan or version of fewbits",
            action=f"Run that command again to finish it, or pass --force, or delete {note}",
        )
    if directory.exists() and noted != run:
        if foreign := converter.intermediate.foreign(directory):
            raise OutputError(
                f"{directory} is in the way", found=", ".join(foreign[:4]), action="Move it away"
            )
        shutil.rmtree(directory)
    try:
        note.write_text(json.dumps({"run": run}) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{output} can't be written", found=error.strerror) from error
    return directory.exists()


def _noted(note: Path) -> str | None:
    try:
        return str(json.loads(note.read_bytes())["run"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return ""  # killed while it was written: nobody's


def convert_directory(converter: Converter, directory: Path, output: Path, progress: Progress) -> int:
    """Convert, compare every quantized weight bit for bit, and give the folder its name.

    Returns:
        Bytes of the folder.

    Raises:
        ExportError: the library couldn't.
        VerificationError: what it wrote isn't what was quantized. The output doesn't get its name.
        OutputError: not enough room, or the folder can't be written.
    """
    quantized = open_checkpoint(directory)
    _require_room(quantized, output)
    with _empty_folder(output) as part:
        converter.convert(quantized, part, progress)
        weights = converter.weights(part)
        compare_weights(converter, quantized, weights, progress)
        _keep_vectors(quantized, weights, part)
        written = describe(converter, quantized, part)
        (part / DESCRIPTION).write_text(written.to_json(), encoding="utf-8")
        replace_folder(part, output)
        shutil.rmtree(replaced_path(output), ignore_errors=True)
    return sum(written.files.values()) + (output / DESCRIPTION).stat().st_size


def finish_conversion(output: Path) -> None:
    """Remove what was only there for the output to be made."""
    shutil.rmtree(directory_path(output), ignore_errors=True)
    conversion_path(output).unlink(missing_ok=True)


def _require_room(quantized: Checkpoint, output: Path) -> None:
    need = sum(file.stat().st_size for file in quantized.files)
    free = shutil.disk_usage(output.parent).free
    if need > free:
        raise OutputError(
            f"not enough room to convert to {output}", found=f"{format_bytes(free)} free",
            allowed=f"about {format_bytes(need)} needed besides the quantized directory",
            action="Make room and run the same command again: it goes on where it stopped",
        )  # fmt: skip


@contextmanager
def _empty_folder(output: Path) -> Iterator[Path]:
    """The unfinished folder, empty and locked; gone if it doesn't get its name."""
    part = part_path(output)
    try:
        if part.exists() and not part.is_dir():
            raise OutputError(f"{part} is in the way", found="a file", action=f"Delete {part}")
        part.mkdir(exist_ok=True)
        lock = os.open(part, os.O_RDONLY)
    except OSError as error:
        raise OutputError(f"{output} can't be written", found=error.strerror) from error
    try:
        lock_file(lock)
        for path in part.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        try:
            yield part
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except BlockingIOError as error:
        raise OutputError(
            f"{output} is being written by another fewbits", action="Wait for it, or choose another output"
        ) from error
    finally:
        os.close(lock)


def compare_weights(
    converter: Converter, quantized: Checkpoint, written: Mapping[str, LazyTensor], progress: Progress
) -> None:
    """Compare what the container's weights are to its runtime with the directory's: quantized ones bit for bit.

    Raises:
        VerificationError: naming the first tensor that differs or is missing.
    """
    packed = [t for t in quantized.tensors.values() if isinstance(t, PackedTensor)]
    if missing := [t.name for t in packed if t.name not in written]:
        raise _failed(converter, missing[0], "nothing")
    progress.stage("verifying", sum(t.matrix[0] * t.matrix[1] for t in packed), "weights")
    for name, found in written.items():
        if (meant := quantized.tensors.get(name)) is None:
            continue
        if found.shape != meant.shape:
            raise _failed(converter, name, f"shape {list(found.shape)} instead of {list(meant.shape)}")
        exact = isinstance(meant, PackedTensor)
        _compare(converter, found, meant, exact=exact)
        progress.advance(meant.matrix[0] * meant.matrix[1] if exact else 0, name)


def _compare(converter: Converter, found: LazyTensor, meant: LazyTensor, *, exact: bool) -> None:
    rows, columns = meant.matrix
    step = max(1, _CHUNK // max(columns, 1))
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        one, other = found.rows(start, stop), meant.rows(start, stop)
        limit = np.abs(other) * np.float32(0 if exact else _PLAIN_ROUNDING)
        if not (differing := ~(np.abs(one - other) <= limit)).any():
            continue
        row, column = (int(i) for i in np.argwhere(differing)[0])
        raise _failed(
            converter, meant.name,
            f"{one[row, column]!r} instead of {other[row, column]!r} in row {start + row}, column {column}",
        )  # fmt: skip


def _keep_vectors(quantized: Checkpoint, told: Mapping[str, LazyTensor], folder: Path) -> None:
    """Write the vectors that the library's files don't tell; matrices that aren't quantized would be held twice."""
    kept = {
        t.name: t
        for t in quantized.tensors.values()
        if isinstance(t, StoredTensor) and len(t.shape) == 1 and t.name not in told
    }
    if not kept:
        return
    layout = place_arrays([[Array(t.name, t.dtype, t.shape, t.name, "")] for t in kept.values()], {})
    ((_, file),) = layout.files.items()
    data = bytearray(file.size)
    data[: len(file.header)] = file.header
    for name, parts in layout.parts.items():
        start = parts[""].offset
        data[start : start + kept[name].nbytes] = kept[name].raw(0, kept[name].matrix[0]).tobytes()
    (folder / VECTORS).write_bytes(data)


def _failed(converter: Converter, name: str, found: str) -> VerificationError:
    return VerificationError(
        f"what {converter.name}'s library wrote failed its check at {name}", found=found,
        action="This is a bug in fewbits, or a version of the library with another layout; the output has no name",
    )  # fmt: skip


def describe(converter: Converter, quantized: Checkpoint, folder: Path) -> Description:
    """The description of a folder that was just written."""
    files = {
        p.relative_to(folder).as_posix(): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()
    }
    tensors = {
        name: ConvertedTensor(t.shape, t.dtype, t.nbytes)
        for name, t in quantized.tensors.items()
        if isinstance(t, SizedTensor)
    }
    made = {k: v for k, v in quantized.metadata.items() if k.startswith("fewbits.")}
    config = {k: v for k, v in quantized.config.items() if not k.startswith("fewbits.")}
    return Description(converter.name, made, config, tensors, files)
