"""A quantization made ready: the source read, the plan chosen, every byte of the output located."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbits.checkpoint.checkpoint import Checkpoint
from fewbits.checkpoint.content_hash import content_hash
from fewbits.checkpoint.source import open_checkpoint
from fewbits.errors import FewbitsError, PlanError
from fewbits.export.exporter import Exporter, Layout, OutputTensor
from fewbits.export.registry import get_exporter
from fewbits.pipeline.goal import FileSize, Goal, rounded_choices
from fewbits.pipeline.provenance import Provenance, provenance_metadata
from fewbits.planning.allocation import build_plan, check_choices, tensor_nbytes, uniform
from fewbits.planning.byte_size import parse_bytes
from fewbits.planning.plan import Plan, TensorChoice, parse_choices
from fewbits.progress import Progress, Silent

if TYPE_CHECKING:
    from fewbits.pipeline.calibrated import Calibration

EFFORTS = ("fast", "balanced", "best")
DEFAULT_EFFORT = "fast"


@dataclass(frozen=True)
class Settings:
    """How to go about it.

    Attributes:
        to: container.
        effort: fast, balanced or best.
        calibration: text for the calibrated efforts; None: the default text.
        memory: bytes that the run may hold, or text such as ``4GB``.
        threads: None: all cores that this process may use.
        seed: of everything random.
    """

    to: str = "gguf"
    effort: str = DEFAULT_EFFORT
    calibration: str | Path | None = None
    memory: str | int = "4GB"
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.effort not in EFFORTS:
            raise FewbitsError("unknown effort", found=repr(self.effort), allowed=", ".join(EFFORTS))
        if self.calibration is not None and self.effort == "fast":
            raise FewbitsError(
                "--calibration has no use with --effort fast, which rounds without looking at the model's inputs",
                action="Leave it out, or use --effort balanced",
            )
        if self.threads is not None and self.threads < 1:
            raise FewbitsError("--threads is out of range", found=self.threads, allowed="1 or more")

    @property
    def memory_bytes(self) -> int:
        """The memory as a number."""
        return parse_bytes(self.memory)

    @property
    def cores(self) -> int:
        """The threads as a number."""
        return self.threads or len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Job:
    """Everything that decides the bytes of the output.

    Attributes:
        metadata: all of it, provenance included.
        calibration: what the calibrated efforts know of the model; None for fast.
    """

    checkpoint: Checkpoint
    exporter: Exporter
    tensors: list[OutputTensor]
    metadata: Mapping[str, Any]
    plan: Plan
    provenance: Provenance
    layout: Layout
    calibration: Calibration | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know about this source in this container."""
        starved = self.calibration.starved if self.calibration else {}
        few = (
            [f"{len(starved)} experts saw too few calibration tokens; they lean on the others'"]
            if starved
            else []
        )
        return (*self.checkpoint.warnings, *self.exporter.notes(self.checkpoint), *few)

    @property
    def run(self) -> str:
        """Identity of the run, for resuming: the header holds the source's hash, the plan, the seed, the version."""
        return hashlib.sha256(self.layout.header + str(self.layout.size).encode()).hexdigest()


def prepare_job(source: str | Path, goal: Goal, settings: Settings, progress: Progress | None = None) -> Job:
    """Read the source, calibrate if the effort asks for it, and choose the plan; no output is written.

    Raises:
        FewbitsError: whatever is wrong with the source, the goal or their combination.
    """
    progress = progress or Silent()
    exporter = get_exporter(settings.to)
    checkpoint = open_checkpoint(source)
    tensors = exporter.tensors(checkpoint)
    metadata = exporter.metadata(checkpoint)
    provenance = Provenance(
        # A hub id's folder is named after its commit, which says less than the id.
        source=checkpoint.path.name if Path(source).exists() else str(source),
        source_hash=content_hash(checkpoint), goal=goal.describe(),
        effort=settings.effort, seed=settings.seed,
    )  # fmt: skip
    like: dict[str, TensorChoice] | None = None
    if goal.like is not None:
        provenance, like = _like(Path(goal.like), provenance)
        settings = replace(settings, effort=provenance.effort, seed=provenance.seed)
    calibration = None
    if settings.effort != "fast":
        from fewbits.pipeline.calibrate import calibrate

        calibration = calibrate(checkpoint, exporter, tensors, metadata, settings, progress)
        provenance = _calibrated(provenance, calibration)
    file_size = _size_estimate(tensors, exporter, metadata, provenance)
    choices, kl = (
        (like, None) if like else _choose(tensors, exporter, goal, file_size, calibration, settings, progress)
    )
    choices = check_choices(tensors, exporter, choices)
    if calibration is None:
        choices = {
            n: replace(c, algorithm="none" if c.algorithm == "none" else "rtn") for n, c in choices.items()
        }
    job = assemble(checkpoint, exporter, tensors, metadata, choices, provenance)
    return replace(job, plan=replace(job.plan, predicted_kl=kl), calibration=calibration)


def assemble(
    checkpoint: Checkpoint,
    exporter: Exporter,
    tensors: list[OutputTensor],
    metadata: Mapping[str, Any],
    choices: Mapping[str, TensorChoice],
    provenance: Provenance,
) -> Job:
    """The job for these choices, with its exact layout."""
    plan = build_plan(exporter.name, tensors, choices, 0, provenance.goal)
    full = {**metadata, **provenance_metadata(provenance, plan)}
    layout = exporter.layout(tensors, plan.formats(), full)
    return Job(checkpoint, exporter, tensors, full, replace(plan, size=layout.size), provenance, layout)


def _choose(
    tensors: list[OutputTensor],
    exporter: Exporter,
    goal: Goal,
    file_size: FileSize,
    calibration: Calibration | None,
    settings: Settings,
    progress: Progress,
) -> tuple[dict[str, TensorChoice], float | None]:
    if calibration is None:
        return rounded_choices(tensors, exporter, goal, file_size), None
    from fewbits.pipeline.calibrate import prices
    from fewbits.pipeline.calibrated_plan import calibrated_choices

    optimised = goal.size is not None or goal.bits is not None or goal.max_kl is not None
    weights = sum(prod(t.shape) for t in tensors)
    near = goal.bits if goal.size is None else 8 * parse_bytes(goal.size) / weights
    priced = prices(calibration, exporter, tensors, settings, near, progress) if optimised else {}
    return calibrated_choices(tensors, exporter, goal, file_size, calibration, priced)


def _size_estimate(
    tensors: list[OutputTensor], exporter: Exporter, metadata: Mapping[str, Any], provenance: Provenance
) -> FileSize:
    """A fast size of the whole file for some choices: exact but for the header's last alignment, rounded up.

    The header is made once, when a size is first asked for, since a tokenizer's metadata takes long; only the
    plan's text in it varies.
    """
    align = exporter.alignment

    @cache
    def fixed() -> int:
        base = build_plan(exporter.name, tensors, uniform(tensors, exporter, exporter.formats[0]), 0, "")
        full = {**metadata, **provenance_metadata(provenance, base)}
        return len(exporter.layout(tensors, base.formats(), full).header) - len(base.choices_json())

    def file_size(choices: Mapping[str, TensorChoice]) -> int:
        text = len(build_plan(exporter.name, tensors, choices, 0, "").choices_json())
        data = sum(-(-tensor_nbytes(t, choices[t.name].format) // align) * align for t in tensors)
        return fixed() + text + align + data

    return file_size


def _like(path: Path, provenance: Provenance) -> tuple[Provenance, dict[str, TensorChoice]]:
    """Plan, goal, effort and seed of an artifact that fewbits made."""
    made = Provenance.from_metadata(open_checkpoint(path).metadata, str(path))
    choices = parse_choices(made.plan_data, f"the plan in {path}")
    return replace(made, source=provenance.source, source_hash=provenance.source_hash), choices


def _calibrated(provenance: Provenance, calibration: Calibration) -> Provenance:
    """The provenance with what the calibration was; that of an artifact to be made again must be the same.

    Raises:
        PlanError: the artifact was calibrated on another text.
    """
    if provenance.calibration_hash not in ("", calibration.sha256):
        raise PlanError(
            "the artifact was calibrated on another text",
            found=f"{calibration.name} (sha256 {calibration.sha256[:12]}…)",
            allowed=f"{provenance.calibration} (sha256 {provenance.calibration_hash[:12]}…)",
            action="Pass that text with --calibration",
        )
    return replace(provenance, calibration=calibration.name, calibration_hash=calibration.sha256)
