"""The main job: source in, smaller and verified model out."""

from __future__ import annotations

import shutil
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fewbits.errors import CheckpointError, OutputError
from fewbits.export.exporter import OutputTensor
from fewbits.pipeline.goal import Goal
from fewbits.pipeline.job import DEFAULT_EFFORT, Job, Settings, prepare_job
from fewbits.pipeline.journal import Journal, part_path
from fewbits.pipeline.tensors import Chunk, peak_workspace, quantized_chunks
from fewbits.pipeline.verify import verify_output
from fewbits.planning.byte_size import format_bytes
from fewbits.planning.plan import Plan
from fewbits.progress import Progress, Silent

# Resident size of the interpreter with NumPy and the formats loaded, measured on Linux x86-64.
BASE_MEMORY = 150_000_000
# What PyTorch and transformers add to the process that plans a calibrated run.
TORCH_MEMORY = 500_000_000
# Numbers of metadata held twice while the header is made (the tokenizer's strings as Python objects).
HEADER_COPIES = 12


@dataclass(frozen=True)
class QuantizeResult:
    """What `quantize` made.

    Attributes:
        output: the file.
        size: its bytes.
        bits_per_weight: over all its tensors.
        source: what it was made from.
        source_hash: sha256 over the source's files.
        formats: format name -> number of tensors.
        fallbacks: tensor name -> "requested -> format", where the block didn't divide the rows.
        seconds: wall time.
        resumed: tensors taken over from an interrupted run.
        warnings: what the user should know.
        effort: that it was made with.
        predicted_kl: nats per token, where prices were measured on the model.
        undone: tensors where the plan's algorithm didn't beat weighted rounding on held-out text, and was undone.
    """

    output: str
    size: int
    bits_per_weight: float
    source: str
    source_hash: str
    formats: dict[str, int]
    fallbacks: dict[str, str]
    seconds: float
    resumed: int
    warnings: tuple[str, ...]
    effort: str = "fast"
    predicted_kl: float | None = None
    undone: tuple[str, ...] = ()

    def describe(self) -> str:
        """A summary for a person."""
        formats = ", ".join(f"{name} x{count}" for name, count in sorted(self.formats.items()))
        lines = [
            f"{self.output}: {format_bytes(self.size)} ({self.size:,} bytes), "
            f"{self.bits_per_weight:.3f} bits per weight, in {self.seconds:.1f} s",
            f"  tensors: {formats}",
        ]
        kinds = Counter(self.fallbacks.values())
        lines += [
            f"  fallback: {kind} for {n} tensors (block doesn't divide the row)" for kind, n in kinds.items()
        ]
        if self.predicted_kl is not None:
            lines.append(f"  predicted KL divergence: {self.predicted_kl:.4f} nats per token (an estimate)")
        if self.undone:
            lines.append(f"  rounded instead, since held-out text said so: {', '.join(self.undone)}")
        return "\n".join(lines)


def quantize(
    source: str | Path,
    output: str | Path,
    *,
    to: str = "gguf",
    format: str | None = None,  # noqa: A002  the command line's name for it
    bits: float | None = None,
    size: str | int | None = None,
    plan: str | Path | None = None,
    like: str | Path | None = None,
    max_kl: float | None = None,
    pins: Sequence[str] = (),
    effort: str = DEFAULT_EFFORT,
    calibration: str | Path | None = None,
    memory: str | int = "4GB",
    threads: int | None = None,
    seed: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> QuantizeResult:
    """Quantize a model into one file, resuming where an interrupted run of the same job stopped.

    Args:
        source: Hugging Face directory, hub id, or GGUF file.
        output: the file to make; appears only when whole and read back.
        to: container.
        format: one format for all layers (the default goal: Q4_K).
        bits: average bits per weight, at most.
        size: bytes of the output, at most, e.g. ``"91MB"``.
        plan: a plan file.
        like: an artifact whose plan, effort and seed are taken.
        max_kl: predicted KL divergence in nats per token, at most: the smallest such file.
        pins: ``PATTERN=FORMAT`` texts that fix the format of some tensors.
        effort: ``fast`` rounds; ``balanced`` and ``best`` look at the model's inputs on a calibration text.
        calibration: that text: a file, JSONL, or None for the default.
        memory: bytes that the run may hold, e.g. ``"4GB"``.
        threads: default all cores that this process may use.
        seed: of everything random.
        force: replace an existing output, and discard interrupted work of another job.
        progress: receives what is being done.

    Raises:
        FewbitsError: with the cause and the cure; the output isn't touched.
    """
    began = time.monotonic()
    progress = progress or Silent()
    output = Path(output)
    check_output(output, force=force)
    settings = Settings(to, effort, calibration, memory, threads, seed)
    goal = Goal(format, bits, size, max_kl, plan, like, tuple(pins))
    job = prepare_job(source, goal, settings, progress)
    workers = check_resources(job, output, settings)
    for warning in job.warnings:
        progress.message(warning)
    with Journal(output, job.run) as journal:
        journal.resume(job.layout.regions, job.layout.size, discard=force)
        resumed = len(journal.finished)
        if resumed:
            progress.message(f"resuming: {resumed} of {len(job.tensors)} tensors are done")
        run_job(job, journal, workers, progress)
        verify_output(job, journal, progress)
        journal.publish()
    return QuantizeResult(
        output=str(output), size=job.layout.size, bits_per_weight=job.plan.bits_per_weight, source=str(source),
        source_hash=job.provenance.source_hash, effort=job.provenance.effort,
        formats=dict(Counter(job.plan.formats().values())), fallbacks=fallbacks(job.plan),
        predicted_kl=job.plan.predicted_kl, undone=journal.undone,
        seconds=round(time.monotonic() - began, 3), resumed=resumed, warnings=job.warnings,
    )  # fmt: skip


def run_job(job: Job, journal: Journal, workers: int, progress: Progress) -> None:
    """Quantize every tensor that isn't finished, writing each chunk as it is made."""
    journal.write(job.layout.header, 0)
    todo = [t for t in job.tensors if t.name not in journal.finished]
    progress.stage("quantizing", sum(t.source.matrix[0] * t.source.matrix[1] for t in todo), "weights")
    offset, crc, undone = -1, 0, False
    try:
        for chunk, kept in _chunks(job, todo, workers):
            name = chunk.tensor.name
            if offset < 0:
                offset, crc, undone = job.layout.regions[name].offset, 0, False
            data = chunk.data.data
            journal.write(data, offset)
            offset, crc, undone = offset + len(data), zlib.crc32(data, crc), undone or not kept
            progress.advance(chunk.weights, name)
            if chunk.last:
                journal.finish(name, crc, undone=undone)
                offset = -1
    except CheckpointError:
        journal.discard()
        raise


def _chunks(job: Job, tensors: Sequence[OutputTensor], workers: int) -> Iterator[tuple[Chunk, bool]]:
    """Each chunk, and whether the algorithm that the plan names was kept for it."""
    choices = job.plan.tensors
    rounded = [t for t in tensors if choices[t.name].algorithm in ("rtn", "none")]
    for chunk in quantized_chunks(rounded, choices, workers):
        yield chunk, True
    rest = [t for t in tensors if choices[t.name].algorithm not in ("rtn", "none")]
    if rest and job.calibration is not None:
        from fewbits.pipeline.calibrated import calibrated_chunks

        yield from calibrated_chunks(job.calibration, rest, choices, job.provenance.effort, workers)


def fallbacks(plan: Plan) -> dict[str, str]:
    """Tensors whose rows the requested format doesn't divide: name -> "requested -> format"."""
    return {name: f"{c.requested} -> {c.format}" for name, c in plan.tensors.items() if c.requested}


def check_output(output: Path, *, force: bool) -> None:
    """Refuse an output that exists (without `force`) or a folder that doesn't.

    Raises:
        OutputError: naming the file or the folder.
    """
    if output.is_dir():
        raise OutputError(f"{output} is a folder", allowed="the name of a file")
    if output.exists() and not force:
        raise OutputError(f"{output} exists", action="Choose another name, or pass --force to replace it")
    if not output.parent.is_dir():
        raise OutputError(
            f"the folder {output.parent} doesn't exist", action=f"Run: mkdir -p {output.parent}"
        )


def check_resources(job: Job, output: Path, settings: Settings) -> int:
    """Workers to use, after checking that disk and memory suffice.

    Raises:
        OutputError: not enough room on the disk, or `memory` is less than the job needs.
    """
    part = part_path(output)
    present = part.stat().st_blocks * 512 if part.exists() else 0
    need, free = job.layout.size - present, shutil.disk_usage(output.parent).free
    if need > free:
        raise OutputError(
            f"not enough room for {output}", found=f"{format_bytes(free)} free",
            allowed=f"{format_bytes(need)} needed", action="Make room or choose another disk",
        )  # fmt: skip
    workers, limit = settings.cores, settings.memory_bytes
    while workers > 1 and predicted_memory(job, workers) > limit:
        workers -= 1
    if predicted_memory(job, workers) > limit:
        raise OutputError(
            "--memory is too little", found=format_bytes(limit),
            allowed=f"at least {format_bytes(predicted_memory(job, 1))} for this model",
        )  # fmt: skip
    return workers


def predicted_memory(job: Job, workers: int) -> int:
    """Bytes resident at the peak, at most: independent of the number of blocks."""
    own = BASE_MEMORY + HEADER_COPIES * len(job.layout.header) + peak_workspace(job.tensors, workers)
    if job.calibration is None:
        return own
    from fewbits.pipeline.calibrated import calibrated_memory

    calibrated = [t for t in job.tensors if job.plan.tensors[t.name].algorithm not in ("rtn", "none")]
    return own + TORCH_MEMORY + calibrated_memory(calibrated, workers, BASE_MEMORY)
