"""The stage between quantizing and verifying: what the finished file holds as real numbers is tuned as one.

Codes stay. Scales (and minimums, where they are real numbers) and norms are trained towards the original's predictions
on the calibration text, rounded to what the container can hold, and kept only if that lowers the KL divergence on the
held-out part of the text. What was found lies in OUTPUT.fewbits-tuning before any of it is written, so that a run that
was killed goes on to the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from fewbits.checkpoint.checkpoint import Floats
from fewbits.checkpoint.dtypes import PLAIN, STORAGE, encode_plain
from fewbits.errors import OutputError, ResumeError
from fewbits.export.exporter import WHOLE, OutputTensor, Region
from fewbits.formats import QTensor, get_format
from fewbits.pipeline.job import Job
from fewbits.pipeline.journal import Journal, tuning_path
from fewbits.pipeline.provenance import NOT_TRIED, provenance_metadata
from fewbits.pipeline.tensors import Chunk, PartBytes, part_bytes
from fewbits.pipeline.writing import TensorWriter
from fewbits.progress import Progress
from fewbits.tuning.parameters import MatrixParameters

# Names of arrays in the file: the result as JSON, vectors by name; coefficients have a number before theirs.
_OUTCOME, _VECTOR = "outcome", "vector"
# Bits of a weight that aren't tuned.
_WHOLE_BYTE = 8


@dataclass(frozen=True)
class TuningResult:
    """What tuning came to.

    Attributes:
        kept: whether the file holds the tuned numbers.
        before: KL divergence from the original on held-out calibration text, nats per token; None if not tried.
        after: the same with the tuned numbers.
        note: why it wasn't tried, or "".
    """

    kept: bool
    before: float | None = None
    after: float | None = None
    note: str = ""

    def describe(self) -> str:
        """In a few words; at most `provenance.TUNING_WIDTH` characters."""
        if self.before is None or self.after is None:
            return f"{NOT_TRIED}: {self.note}"
        return f"{'kept' if self.kept else 'undone'}: held-out KL {self.before:.5f} -> {self.after:.5f}"


@dataclass(frozen=True)
class TunedNumbers:
    """The result and, if it is kept, the numbers by container tensor name.

    Attributes:
        matrices: which linear part of the format, and its coefficients float32 [R] each.
        vectors: float32 [K].
    """

    result: TuningResult
    matrices: Mapping[str, tuple[int, tuple[Floats, ...]]] = field(default_factory=dict)
    vectors: Mapping[str, Floats] = field(default_factory=dict)


def tune_numbers(job: Job, journal: Journal, train: Callable[[], TunedNumbers], progress: Progress) -> Job:
    """Tune a finished but unpublished artifact, or go on where an interrupted run stopped.

    Args:
        job: that made it.
        journal: all tensors of which are finished.
        train: finds the numbers.
        progress: told of tensors written.

    Returns:
        The job whose header says what tuning came to.

    Raises:
        ResumeError: what an interrupted run left is damaged.
        OutputError: the disk is full or fails.
    """
    path = tuning_path(journal.output)
    if not path.exists():
        _save(path, train(), job.run)
    found = _load(path, job.run)
    writer = TensorWriter(job.layout, journal)
    if found.result.kept:
        _write(job, journal, writer, found, progress)
    provenance = replace(job.provenance, tuning=found.result.describe())
    metadata = {**job.metadata, **provenance_metadata(provenance, job.plan)}
    layout = job.exporter.layout(job.tensors, job.plan.formats(), metadata)
    if layout.parts != job.layout.parts:
        raise AssertionError("the header changed its length")
    TensorWriter(layout, journal).headers()
    return replace(job, provenance=provenance, metadata=metadata, layout=layout, tuned=found.result.kept)


def _write(job: Job, journal: Journal, writer: TensorWriter, found: TunedNumbers, progress: Progress) -> None:
    changed = [t for t in job.tensors if t.name in found.matrices or t.name in found.vectors]
    progress.stage("writing tuned numbers", sum(prod(t.shape) for t in changed), "weights")
    for tensor in changed:
        parts = _tuned_parts(job, journal, tensor, found)
        undone = journal.reopen(tensor.name)
        writer.write(Chunk(tensor, parts, prod(tensor.shape), last=True), not undone)
        progress.advance(prod(tensor.shape), tensor.name)


def _tuned_parts(job: Job, journal: Journal, tensor: OutputTensor, found: TunedNumbers) -> PartBytes:
    name = job.plan.tensors[tensor.name].format
    if tensor.name in found.vectors:
        return {WHOLE: encode_plain(name, found.vectors[tensor.name]).reshape(-1)}
    part, coefficients = found.matrices[tensor.name]
    qtensor = read_matrix(journal, job.layout.parts[tensor.name], name, tensor.shape)
    return part_bytes(MatrixParameters(qtensor, part).with_coefficients(coefficients).pack())


def read_matrix(
    journal: Journal, regions: Mapping[str, Region], name: str, shape: tuple[int, ...]
) -> QTensor:
    """A finished tensor as it is on disk, in the format of this name."""
    fmt = get_format(name)
    arrays = {
        part: np.frombuffer(journal.read(regions[part]), STORAGE[layout.dtype]).reshape(layout.shape)
        for part, layout in fmt.parts(shape).items()
    }
    matrix = (prod(shape[:-1]), shape[-1])
    return QTensor(fmt, matrix, *fmt.unpack(arrays, matrix))


def tunable(job: Job) -> Iterator[tuple[OutputTensor, str]]:
    """Tensors that may be tuned, with their formats: matrices in fewer than 8 bits, and plain vectors.

    At 8 bits there is nothing to win, and runtimes that round inputs as well may have static scales for them.
    """
    for tensor in job.tensors:
        name = job.plan.tensors[tensor.name].format
        vector = len(tensor.shape) == 1
        if vector if name in PLAIN else (not vector and get_format(name).bits < _WHOLE_BYTE):
            yield tensor, name


def _save(path: Path, found: TunedNumbers, run: str) -> None:
    outcome = {
        "run": run,
        **vars(found.result),
        "parts": {n: part for n, (part, _) in found.matrices.items()},
    }
    arrays: dict[str, Any] = {_OUTCOME: np.frombuffer(json.dumps(outcome).encode(), np.uint8)}
    for name, (_, coefficients) in found.matrices.items():
        arrays |= {f"{i}:{name}": numbers for i, numbers in enumerate(coefficients)}
    arrays |= {f"{_VECTOR}:{name}": numbers for name, numbers in found.vectors.items()}
    temporary = path.with_name(path.name + "-part")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"can't write {path}", found=error.strerror) from error


def _load(path: Path, run: str) -> TunedNumbers:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        outcome = json.loads(arrays.pop(_OUTCOME).tobytes())
        if outcome["run"] != run:
            raise KeyError("run")
        result = TuningResult(*(outcome[key] for key in ("kept", "before", "after", "note")))
        coefficients: dict[str, list[Floats]] = {}
        vectors = {}
        for key, numbers in arrays.items():  # coefficients in the order in which they were written
            kind, _, name = key.partition(":")
            if kind == _VECTOR:
                vectors[name] = numbers
            else:
                coefficients.setdefault(name, []).append(numbers)
        matrices = {n: (int(part), tuple(coefficients[n])) for n, part in outcome["parts"].items()}
    except (KeyError, ValueError, TypeError, OSError, EOFError, BadZipFile) as error:
        raise ResumeError(
            "what tuning found in an interrupted run is damaged", found=str(error),
            action=f"Delete {path}: it is then tuned again",
        ) from error  # fmt: skip
    return TunedNumbers(result, matrices, vectors)
