"""The main job: source in, smaller and verified model out."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from fewbits.algorithms.registry import NONE, needs_statistics
from fewbits.checkpoint.source import open_checkpoint
from fewbits.errors import CheckpointError, OutputError
from fewbits.export.converter import Converter
from fewbits.export.converters import find_converter, require_packages
from fewbits.export.exporter import Exporter, OutputTensor
from fewbits.export.registry import get_exporter
from fewbits.pipeline.conversion import (
    claim_directory,
    convert_directory,
    directory_path,
    finish_conversion,
)
from fewbits.pipeline.goal import Goal
from fewbits.pipeline.job import Job, Settings, effort_or_default, prepare_job
from fewbits.pipeline.journal import Journal, part_path
from fewbits.pipeline.memory import BASE_MEMORY, TORCH_MEMORY
from fewbits.pipeline.tensors import Chunk, peak_workspace, quantized_chunks
from fewbits.pipeline.tuning import tune_numbers
from fewbits.pipeline.verify import verify_output
from fewbits.pipeline.writing import TensorWriter
from fewbits.planning.byte_size import format_bytes
from fewbits.planning.plan import Plan
from fewbits.progress import Progress, Silent

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
        tuning: what tuning scales and norms at the end came to; "" if the effort doesn't.
        float32_share: bytes of the quantized weights, scales included, over what they take in float32; 0 if none are.
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
    tuning: str = ""
    undone: tuple[str, ...] = ()
    float32_share: float = 0.0

    def describe(self) -> str:
        """A summary for a person."""
        formats = ", ".join(f"{name} x{count}" for name, count in sorted(self.formats.items()))
        lines = [
            f"{self.output}: {format_bytes(self.size)} ({self.size:,} bytes), "
            f"{self.bits_per_weight:.3f} bits per weight, in {self.seconds:.1f} s",
            f"  tensors: {formats}",
        ]
        if self.float32_share:
            lines.append(f"  quantized weights take {self.float32_share:.1%} of FP32's bytes")
        kinds = Counter(self.fallbacks.values())
        lines += [
            f"  fallback: {kind} for {n} tensors (the block doesn't divide all their rows)"
            for kind, n in kinds.items()
        ]
        if self.predicted_kl is not None:
            lines.append(f"  predicted KL divergence: {self.predicted_kl:.4f} nats per token (an estimate)")
        if self.tuning:
            lines.append(f"  tuning of scales and norms: {self.tuning}")
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
    effort: str | None = None,
    calibration: str | Path | None = None,
    memory: str | int = "4GB",
    threads: int | None = None,
    seed: int = 0,
    imatrix: str | Path | None = None,
    algorithm: str | None = None,
    fold: bool = True,
    tune: bool | None = None,
    kv_cache: str | None = None,
    hardware: str | None = None,
    static_scale: str | None = None,
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
        effort: ``fast`` rounds; ``balanced`` and ``best`` look at the model's inputs on a calibration text. Default:
            ``fast``.
        calibration: that text: a file, JSONL, a dataset as ``hub:OWNER/NAME``, or None for the default.
        memory: bytes that the run may hold, e.g. ``"4GB"``.
        threads: default all cores that this process may use.
        seed: of everything random.
        imatrix: llama.cpp's importance matrix (GGUF) for effort fast to weight its rounding with.
        algorithm: how codes are chosen, in place of what the effort or the plan says: ``rtn``, ``hqq``, and with a
            calibrated effort ``imatrix``, ``gptq``, ``signround``.
        fold: whether scales of channels may move from norms and maps into the maps that read them (see `Settings`).
        tune: whether scales and norms are trained once the codes are chosen; None: at effort best, below
            4 bits a weight.
        kv_cache: write scales for a quantized key-value cache as well, calibrated: ``fp8`` or ``fp8_per_head``.
        hardware: what must compute the formats, such as ``ampere``: plans take nothing else (`fewbits targets`).
        static_scale: how scales of activations that the file holds are chosen: ``mse``, ``absmax``, ``percentile:P`` or
            ``held-out``, for formats that have them.
        force: replace an existing output, and discard interrupted work of another job.
        progress: receives what is being done.

    Raises:
        FewbitsError: with the cause and the cure; the output isn't touched.
    """
    began = time.monotonic()
    progress = progress or Silent()
    output = Path(output)
    converter = find_converter(to)
    check_target(source, output, to, force=force)
    effort = effort_or_default(effort, imatrix)
    settings = Settings(
        to, effort, calibration, memory, threads, seed, imatrix, algorithm, fold, tune, kv_cache,
        hardware, static_scale,
    )  # fmt: skip
    goal = Goal(format, bits, size, max_kl, plan, like, tuple(pins))
    job = prepare_job(source, goal, settings, progress)
    for warning in job.warnings:
        progress.message(warning)

    def write(path: Path) -> Written:
        return write_job(job, path, settings, progress, discard=force)

    if converter is None:
        written = write(output)
    else:
        written = write_converted(converter, job, output, write, progress, discard=force)
    return quantize_result(written, source, output, time.monotonic() - began)


@dataclass(frozen=True)
class Written:
    """An output that has its name: the job as it ended, bytes, tensors that were resumed and that were undone."""

    job: Job
    size: int
    resumed: int = 0
    undone: tuple[str, ...] = ()


def quantize_result(written: Written, source: str | Path, output: Path, seconds: float) -> QuantizeResult:
    """The report on an output."""
    job = written.job
    return QuantizeResult(
        output=str(output), size=written.size, bits_per_weight=job.plan.bits_per_weight, source=str(source),
        source_hash=job.provenance.source_hash, effort=job.provenance.effort,
        formats=dict(Counter(job.plan.formats().values())), fallbacks=fallbacks(job.plan),
        predicted_kl=job.plan.predicted_kl, tuning=job.provenance.tuning, undone=written.undone,
        seconds=round(seconds, 3), resumed=written.resumed, warnings=job.warnings,
        float32_share=float32_share(job),
    )  # fmt: skip


def write_job(job: Job, output: Path, settings: Settings, progress: Progress, *, discard: bool) -> Written:
    """Write an output from where an interrupted run of the job stopped, check it, and give it its name.

    Args:
        job: what to write.
        output: the file or folder.
        settings: of the job.
        progress: receives what is being done.
        discard: begin anew when the work on disk belongs to another job, instead of refusing.

    Raises:
        FewbitsError: with the cause and the cure; the output isn't touched.
    """
    workers = check_resources(job, output, settings)
    with Journal(output, job.run, folder=job.exporter.folder) as journal:
        journal.resume(job.layout, discard=discard)
        resumed = len(journal.finished)
        if resumed:
            progress.message(f"resuming: {resumed} of {len(job.tensors)} tensors are done")
        run_job(job, journal, workers, settings, progress)
        job = tuned_job(job, journal, settings, progress)
        verify_output(job, journal, progress, workers)
        journal.publish()
    return Written(job, job.layout.size, resumed, journal.undone)


def write_converted(
    converter: Converter,
    job: Job,
    output: Path,
    write: Callable[[Path], Written],
    progress: Progress,
    *,
    discard: bool,
) -> Written:
    """As `write_job`, for a container that its runtime's library makes from the job's directory, which `write` writes.

    Raises:
        FewbitsError: with the cause and the cure; the output isn't touched.
    """
    written = Written(job, job.layout.size, len(job.tensors))
    if not claim_directory(output, job.run, converter, discard=discard):
        written = write(directory_path(output))
    else:
        progress.message("resuming: all tensors are quantized")
    size = convert_directory(converter, directory_path(output), output, progress)
    finish_conversion(output)
    return replace(written, size=size)


def check_target(source: str | Path, output: Path, to: str, *, force: bool) -> None:
    """Refuse an output that exists, and a converter without its packages or with a model that it has no place for.

    Raises:
        FewbitsError: see `check_output`, `MissingExtraError` and `Converter.check`.
    """
    converter = find_converter(to)
    check_output(output, force=force, exporter=converter or get_exporter(to))
    if converter is not None:
        require_packages(converter)
        converter.check(open_checkpoint(source))


def float32_share(job: Job) -> float:
    """Bytes of the quantized weights, scales included, as a share of what they take in float32; 0 if none are."""
    quantized = [t for t in job.tensors if job.plan.tensors[t.name].algorithm != NONE]
    weights = sum(prod(t.shape) for t in quantized)
    nbytes = sum(region.nbytes for t in quantized for region in job.layout.parts[t.name].values())
    return nbytes / (4 * weights) if weights else 0.0


def run_job(job: Job, journal: Journal, workers: int, settings: Settings, progress: Progress) -> None:
    """Quantize every tensor that isn't finished, writing each chunk as it is made.

    `workers` are for those that need no statistics; for others it depends on the tensor how many may run at once.
    """
    writer = TensorWriter(job.layout, journal)
    writer.headers()
    todo = [t for t in job.tensors if t.name not in journal.finished]
    progress.stage("quantizing", sum(t.source.matrix[0] * t.source.matrix[1] for t in todo), "weights")
    try:
        for chunk, kept in _chunks(job, todo, workers, settings):
            writer.write(chunk, kept)
            progress.advance(chunk.weights, chunk.tensor.name)
    except CheckpointError:
        journal.discard()
        raise


def tuned_job(job: Job, journal: Journal, settings: Settings, progress: Progress) -> Job:
    """The job after its numbers were tuned, where it asks for that; all its tensors must be finished."""
    if not job.provenance.tuning or job.calibration is None:
        return job
    from fewbits.pipeline.trained import trained_numbers

    tokens = job.calibration.tokens
    return tune_numbers(
        job, journal, lambda: trained_numbers(job, tokens, journal, settings, progress), progress
    )


def _chunks(
    job: Job, tensors: Sequence[OutputTensor], workers: int, settings: Settings
) -> Iterator[tuple[Chunk, bool]]:
    """Each chunk, and whether the algorithm that the plan names was kept for it."""
    choices = job.plan.tensors
    alone = [job.calibration is None or not needs_statistics(choices[t.name].algorithm) for t in tensors]
    rounded = [t for t, a in zip(tensors, alone, strict=True) if a]
    rest = [t for t, a in zip(tensors, alone, strict=True) if not a]
    known = {t.name: t for t in job.tensors}
    for chunk in quantized_chunks(rounded, choices, workers, known, job.importance):
        yield chunk, True
    if rest and job.calibration is not None:
        from fewbits.pipeline.calibrated import by_workers, calibrated_chunks

        effort = job.provenance.effort
        for group in by_workers(rest, settings.cores, settings.memory_bytes):
            yield from calibrated_chunks(job.calibration, group, choices, effort)


def fallbacks(plan: Plan) -> dict[str, str]:
    """Tensors whose rows the requested format doesn't divide: name -> "requested -> format"."""
    return {name: f"{c.requested} -> {c.format}" for name, c in plan.tensors.items() if c.requested}


def check_output(output: Path, *, force: bool, exporter: Exporter | Converter | None = None) -> None:
    """Refuse an output that exists (without `force`) or a folder that doesn't.

    Args:
        output: what is to be written.
        force: whether it may be replaced, if fewbits made it.
        exporter: of the container, which may be a folder; None for a file.

    Raises:
        OutputError: naming the file or the folder.
    """
    folder = exporter is not None and exporter.folder
    if output.exists() and output.is_dir() != folder:
        found = "a folder" if output.is_dir() else "a file"
        allowed = f"the name of a {'folder' if folder else 'file'}"
        raise OutputError(f"{output} is {found}", allowed=allowed)
    if output.exists() and not force:
        raise OutputError(f"{output} exists", action="Choose another name, or pass --force to replace it")
    if exporter is not None and folder and output.exists() and (foreign := exporter.foreign(output)):
        raise OutputError(
            f"{output} holds what fewbits didn't write", found=", ".join(foreign[:4]),
            action="Choose another name, or move these away",
        )  # fmt: skip
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
    files = [part, *part.rglob("*")] if part.exists() else []
    present = sum(file.stat().st_blocks * 512 for file in files)
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
    workspace = peak_workspace(job.tensors, job.plan.tensors, workers)
    own = BASE_MEMORY + HEADER_COPIES * job.layout.header_nbytes + workspace
    if job.calibration is None:
        return own
    from fewbits.pipeline.calibrated import calibrated_memory

    calibrated = [t for t in job.tensors if needs_statistics(job.plan.tensors[t.name].algorithm)]
    return own + TORCH_MEMORY + calibrated_memory(calibrated, 1)
