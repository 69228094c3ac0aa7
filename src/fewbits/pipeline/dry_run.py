"""What a run would take, found out before anything is spent; and one block taken all the way."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fewbits.checkpoint.source import open_checkpoint
from fewbits.errors import ArchitectureError, VerificationError
from fewbits.export.converter import Converter
from fewbits.export.converters import find_converter
from fewbits.export.exporter import OutputTensor
from fewbits.pipeline.conversion import convert_directory
from fewbits.pipeline.goal import Goal
from fewbits.pipeline.job import Job, Settings, assemble, effort_or_default, prepare_job
from fewbits.pipeline.journal import Journal
from fewbits.pipeline.quantize import (
    check_resources,
    check_target,
    fallbacks,
    predicted_memory,
    run_job,
)
from fewbits.pipeline.verify import verify_output
from fewbits.planning.byte_size import format_bytes
from fewbits.progress import Progress, Silent


@dataclass(frozen=True)
class DryRun:
    """Predictions (size exact, the rest estimates) and what was tried.

    Attributes:
        size: bytes of the output, exact; of a container that its runtime's library writes those of the directory
            that it is made from.
        bits_per_weight: exact.
        disk_needed: bytes that must be free while it is made.
        disk_free: bytes that are.
        peak_memory: predicted bytes resident at the peak, at most.
        seconds: predicted wall time, from the speed of the block that was tried.
        threads: that the run would use.
        tried: tensors that were quantized, written, opened again and compared with the source.
        tried_size: bytes of that file.
        ran: whether that file was loaded as a model and gave finite logits; None where that can't be tried here
            (without fewbits[models], or for an architecture that transformers isn't known to have).
        fallbacks: tensor name -> "requested -> format".
        warnings: what the user should know.
    """

    size: int
    bits_per_weight: float
    disk_needed: int
    disk_free: int
    peak_memory: int
    seconds: float
    threads: int
    tried: int
    tried_size: int
    ran: bool | None
    fallbacks: dict[str, str]
    warnings: tuple[str, ...]

    def describe(self) -> str:
        """For a person."""
        return "\n".join(
            [
                f"output:  {format_bytes(self.size)} ({self.size:,} bytes), "
                f"{self.bits_per_weight:.3f} bits per weight",
                f"disk:    {format_bytes(self.disk_needed)} needed, {format_bytes(self.disk_free)} free",
                f"memory:  at most {format_bytes(self.peak_memory)} (estimate)",
                f"time:    about {self.seconds:.0f} s with {self.threads} threads (estimate)",
                f"tried:   {self.tried} tensors of a one-block model were quantized, written, "
                f"opened again{', run' if self.ran else ''} and compared with the source",
            ]
        )


def dry_run(
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
) -> DryRun:
    """Everything `quantize` would do with these arguments, on the model's first block only.

    Raises:
        FewbitsError: what `quantize` would raise before or during that block.
    """
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
    used = check_resources(job, output, settings)
    with tempfile.TemporaryDirectory(prefix=".fewbits-dry-run-", dir=output.parent) as folder:
        small = one_block(job)
        seconds, ran = _try(small, Path(folder) / output.name, used, settings, progress)
        if converter is not None:
            _try_conversion(converter, Path(folder) / output.name, progress)
    return DryRun(
        size=job.layout.size, bits_per_weight=job.plan.bits_per_weight,
        disk_needed=job.layout.size * (1 if converter is None else 2),
        disk_free=shutil.disk_usage(output.parent).free, peak_memory=predicted_memory(job, used),
        seconds=round(_extrapolate(seconds, small.tensors, job.tensors), 1), threads=used,
        tried=len(small.tensors), tried_size=small.layout.size, ran=ran, fallbacks=fallbacks(job.plan),
        warnings=job.warnings,
    )  # fmt: skip


def one_block(job: Job) -> Job:
    """The same job for a model cut down to its first transformer block."""
    tensors, metadata = job.exporter.first_block(job.tensors, job.metadata)
    choices = {t.name: job.plan.tensors[t.name] for t in tensors}
    own: dict[str, Any] = {k: v for k, v in metadata.items() if not k.startswith("fewbits.")}
    provenance = replace(job.provenance, goal="--dry-run")
    made = assemble(job.checkpoint, job.exporter, tensors, own, choices, provenance)
    return replace(made, calibration=job.calibration, importance=job.importance)


class _Stopwatch(Silent):
    """Seconds spent on each tensor, by its name."""

    def __init__(self, inner: Progress) -> None:
        self.inner = inner
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def stage(self, name: str, total: int, unit: str) -> None:
        self.inner.stage(name, total, unit)
        self._last = time.monotonic()

    def advance(self, done: int, detail: str = "") -> None:
        self.inner.advance(done, detail)
        now = time.monotonic()
        self.seconds[detail] = self.seconds.get(detail, 0.0) + now - self._last
        self._last = now


def _try(
    job: Job, output: Path, threads: int, settings: Settings, progress: Progress
) -> tuple[dict[str, float], bool | None]:
    """Quantize, write, read back, compare and run; seconds by tensor, the check included."""
    watch = _Stopwatch(progress)
    with Journal(output, job.run, folder=job.exporter.folder) as journal:
        journal.resume(job.layout, discard=False)
        run_job(job, journal, threads, settings, watch)
        verify_output(job, journal, watch, threads)
        journal.publish()
    return watch.seconds, _runs(output)


def _try_conversion(converter: Converter, directory: Path, progress: Progress) -> None:
    """Convert the one-block model, and compare its weights."""
    converter.check(open_checkpoint(directory))
    convert_directory(converter, directory, directory.with_name(directory.name + "-converted"), progress)


def _runs(path: Path) -> bool | None:
    """Load a file as a model and compute some logits; None where it can't be tried.

    Raises:
        VerificationError: logits that aren't finite.
    """
    try:
        import torch

        from fewbits.language_model.transformers_model import model_of
    except ImportError:
        return None
    try:
        model = model_of(open_checkpoint(path))
    except ArchitectureError:
        return None
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[0, 1, 2, 3]])).logits
    if not bool(torch.isfinite(logits).all()):
        raise VerificationError(
            "a one-block model made from the source gives logits that aren't finite",
            action="Try it with --format F32: if that fails as well, the source is at fault",
        )
    return True


def _extrapolate(seconds: dict[str, float], tried: list[OutputTensor], all_: list[OutputTensor]) -> float:
    """Time of all tensors: those outside blocks as measured, the blocks in proportion to their weights."""
    inside = {t.name for t in tried if t.block is not None}
    measured = sum(s for name, s in seconds.items() if name in inside)
    outside = sum(s for name, s in seconds.items() if name not in inside)

    def weights(tensors: list[OutputTensor]) -> int:
        return sum(t.source.matrix[0] * t.source.matrix[1] for t in tensors if t.block is not None)

    return outside + measured * weights(all_) / max(weights(tried), 1)
