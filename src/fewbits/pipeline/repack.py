"""From one container to another without quantizing again, where the target holds the same numbers exactly."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fewbits.algorithms.registry import NONE
from fewbits.checkpoint.checkpoint import Checkpoint
from fewbits.checkpoint.codes import quantized_format, quantized_rows
from fewbits.checkpoint.content_hash import content_hash
from fewbits.checkpoint.dtypes import PLAIN, encode_plain
from fewbits.checkpoint.source import open_checkpoint
from fewbits.errors import PlanError
from fewbits.export.converters import find_converter
from fewbits.export.exporter import WHOLE, OutputTensor
from fewbits.export.registry import get_exporter
from fewbits.formats import get_format
from fewbits.formats.numbers import numbers_of, taken_over
from fewbits.pipeline.job import Job, Settings, assemble
from fewbits.pipeline.journal import Journal
from fewbits.pipeline.provenance import Provenance
from fewbits.pipeline.quantize import Written, check_resources, check_target, write_converted
from fewbits.pipeline.tensors import Chunk, Chunking, PartBytes, part_bytes
from fewbits.pipeline.verify import verify_output
from fewbits.pipeline.writing import TensorWriter
from fewbits.planning.byte_size import format_bytes
from fewbits.planning.plan import DEFAULT_ALGORITHM, TensorChoice, parse_choices
from fewbits.planning.same_numbers import same_formats
from fewbits.progress import Progress, Silent

_GOAL = "fewbits export"


@dataclass(frozen=True)
class RepackResult:
    """What `repack` made.

    Attributes:
        output: the file or folder.
        size: its bytes.
        bits_per_weight: over all its tensors.
        source: what it was made from.
        formats: "source's format -> its format" -> number of tensors.
        seconds: wall time.
        resumed: tensors taken over from an interrupted run.
        warnings: what the user should know.
    """

    output: str
    size: int
    bits_per_weight: float
    source: str
    formats: Mapping[str, int]
    seconds: float
    resumed: int
    warnings: tuple[str, ...]

    def describe(self) -> str:
        """For a person."""
        formats = ", ".join(f"{name} x{count}" for name, count in sorted(self.formats.items()))
        return (
            f"{self.output}: {format_bytes(self.size)} ({self.size:,} bytes), {self.bits_per_weight:.3f} bits per "
            f"weight, in {self.seconds:.1f} s; every number as in {self.source}\n  tensors: {formats}"
        )


def repack(
    source: str | Path,
    output: str | Path,
    *,
    to: str,
    memory: str | int = "4GB",
    force: bool = False,
    progress: Progress | None = None,
) -> RepackResult:
    """Write a quantized model in another container, with the same codes, scales and zero points.

    Args:
        source: a quantized file or folder.
        output: the file or folder to make; appears only when whole and read back.
        to: container.
        memory: bytes that the run may hold, e.g. ``"4GB"``.
        force: replace an existing output, and discard interrupted work of another job.
        progress: receives what is being done.

    Raises:
        PlanError: tensors whose numbers no format of the container holds, with the first of them and the reasons.
        FewbitsError: whatever else is wrong; the output isn't touched.
    """
    began = time.monotonic()
    progress, output = progress or Silent(), Path(output)
    check_target(source, output, to, force=force)
    settings = Settings(to=to, memory=memory)
    job = repacking_job(source, to, progress)
    for warning in job.warnings:
        progress.message(warning)
    converter = find_converter(to)

    def write(path: Path) -> Written:
        return _write(job, path, settings, progress, discard=force)

    written = (
        write(output)
        if converter is None
        else write_converted(converter, job, output, write, progress, discard=force)
    )
    kinds = Counter(f"{t.source.dtype} -> {job.plan.tensors[t.name].format}" for t in job.tensors)
    return RepackResult(
        output=str(output), size=written.size, bits_per_weight=job.plan.bits_per_weight, source=str(source),
        formats=dict(kinds), seconds=round(time.monotonic() - began, 3), resumed=written.resumed,
        warnings=job.warnings,
    )  # fmt: skip


def repacking_job(source: str | Path, to: str, progress: Progress) -> Job:
    """What is to be written; the source is read once to find the formats.

    Raises:
        FewbitsError: the source isn't quantized, can't be read, or doesn't fit the container.
    """
    exporter, checkpoint = get_exporter(to), open_checkpoint(source)
    checkpoint = replace(checkpoint, warnings=())  # they are about quantizing it again
    tensors = exporter.tensors(checkpoint)
    if all(quantized_format(tensor.source) is None for tensor in tensors):
        raise PlanError(
            f"{checkpoint.path} isn't quantized in a format of fewbits, so that there is nothing to keep",
            action=f"Run: fewbits quantize {source} OUT --to {to}",
        )
    formats = same_formats(tensors, exporter, progress)
    provenance, made = _provenance(checkpoint, source)
    choices = {
        name: TensorChoice(
            fmt, NONE if fmt in PLAIN or fmt not in exporter.formats else _algorithm(made, name)
        )
        for name, fmt in formats.items()
    }
    return assemble(checkpoint, exporter, tensors, exporter.metadata(checkpoint), choices, provenance)


def _algorithm(made: Mapping[str, TensorChoice], name: str) -> str:
    """What chose the codes, if the source's plan says so under this name."""
    known = made.get(name)
    return DEFAULT_ALGORITHM if known is None or known.algorithm == NONE else known.algorithm


def _provenance(checkpoint: Checkpoint, source: str | Path) -> tuple[Provenance, Mapping[str, TensorChoice]]:
    """How the source was made and its choices, if fewbits made it, with what it is itself."""
    name = checkpoint.path.name if Path(source).exists() else str(source)
    digest = content_hash(checkpoint)
    try:
        made = Provenance.from_metadata(checkpoint.metadata, name)
        choices = parse_choices(made.plan_data, f"the plan in {name}")
    except PlanError:
        return Provenance(name, digest, _GOAL, "fast", 0, exported=name, exported_hash=digest), {}
    return replace(made, plan_data=None, exported=name, exported_hash=digest), choices


def _write(job: Job, output: Path, settings: Settings, progress: Progress, *, discard: bool) -> Written:
    """As `write_job`, with what the source holds."""
    workers = check_resources(job, output, settings)
    with Journal(output, job.run, folder=job.exporter.folder) as journal:
        journal.resume(job.layout, discard=discard)
        resumed = len(journal.finished)
        if resumed:
            progress.message(f"resuming: {resumed} of {len(job.tensors)} tensors are done")
        writer = TensorWriter(job.layout, journal)
        writer.headers()
        todo = [t for t in job.tensors if t.name not in journal.finished]
        progress.stage("writing", sum(t.source.matrix[0] * t.source.matrix[1] for t in todo), "weights")
        for tensor in todo:
            for chunk in _chunks(tensor, job.plan.tensors[tensor.name].format):
                writer.write(chunk, kept=True)
                progress.advance(chunk.weights, tensor.name)
        verify_output(job, journal, progress, workers)
        journal.publish()
    return Written(job, job.layout.size, resumed)


def _chunks(tensor: OutputTensor, name: str) -> Iterator[Chunk]:
    rows, columns = tensor.source.matrix
    plain = name in PLAIN or (quantized_format(tensor.source) is None)
    step = Chunking(together=1 if plain else get_format(name).rows_together).rows(columns)
    for start in range(0, max(rows, 1), step):
        stop = min(start + step, rows)
        parts = _plain_bytes(tensor, name, start, stop) if plain else _taken_bytes(tensor, name, start, stop)
        yield Chunk(tensor, parts, (stop - start) * columns, stop >= rows)


def _taken_bytes(tensor: OutputTensor, name: str, start: int, stop: int) -> PartBytes:
    numbers = numbers_of(quantized_rows(tensor.source, start, stop))
    shape = (stop - start, tensor.source.matrix[1])
    return part_bytes(taken_over(numbers, get_format(name), shape).pack())


def _plain_bytes(tensor: OutputTensor, name: str, start: int, stop: int) -> PartBytes:
    return {WHOLE: encode_plain(name, tensor.source.rows(start, stop)).reshape(-1)}
