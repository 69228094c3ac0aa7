"""A quantization made ready: the source read, the plan chosen, every byte of the output located."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbits.algorithms import imatrix as weighted_rounding
from fewbits.algorithms.registry import NONE, needs_statistics
from fewbits.algorithms.static_scales import DEFAULT_RULE, check_rule
from fewbits.checkpoint.checkpoint import Checkpoint
from fewbits.checkpoint.content_hash import content_hash
from fewbits.checkpoint.converted import read_description
from fewbits.checkpoint.source import open_checkpoint
from fewbits.errors import FewbitsError, PlanError
from fewbits.export.exporter import Exporter, Layout, OutputTensor
from fewbits.export.kv_cache import check_kv_cache
from fewbits.export.registry import DIRECTORY_SUFFIX, get_exporter
from fewbits.language_model.packages import require_models_extra
from fewbits.operating_system import usable_cores
from fewbits.pipeline.folds import folded, folds_hash
from fewbits.pipeline.goal import FileSize, Goal, check_goal, pinned_tensors, rounded_choices
from fewbits.pipeline.provenance import ASKED_FOR, NOT_TRIED, PENDING, Provenance, provenance_metadata
from fewbits.planning.allocation import build_plan, check_choices, plain_format, tensor_nbytes, uniform
from fewbits.planning.byte_size import parse_bytes
from fewbits.planning.for_hardware import for_hardware, hardware_notes
from fewbits.planning.plan import DEFAULT_ALGORITHM, Plan, TensorChoice, parse_choices, read_plan
from fewbits.progress import Progress, Silent

if TYPE_CHECKING:
    from fewbits.pipeline.calibrated import Calibration
    from fewbits.pipeline.importance import Importance

# Bytes by which headers may be padded otherwise than in an estimate.
_ALIGNMENTS = 16
EFFORTS = ("fast", "balanced", "best")
DEFAULT_EFFORT = "balanced"
# Those that tune scales and norms at the end.
TUNED_EFFORTS = ("best",)
# A user's own default, e.g. fast on a machine without PyTorch.
EFFORT_VARIABLE = "FEWBITS_EFFORT"


def effort_or_default(effort: str | None, imatrix: str | Path | None = None) -> str:
    """What is meant where no effort is named: an importance matrix takes the place of calibration."""
    return effort or ("fast" if imatrix is not None else os.environ.get(EFFORT_VARIABLE) or DEFAULT_EFFORT)


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
        imatrix: an importance matrix for effort fast to weight its rounding with; None: none.
        algorithm: how codes are chosen, for all quantized tensors where it can run; None: what the effort or the
            plan says.
        fold: whether the calibrated efforts may move scales of channels from norms and maps into the maps that read
            them, which makes rounding cost less and changes nothing else (but what adapters trained on it expect).
        tune: whether scales and norms are trained once the codes are chosen, and kept if that helps; None: at effort
            best, where it is likely to (see `trained.ENOUGH_BITS`).
        kv_cache: the quantized key-value cache that the output has scales for; None: none.
        static_scale: rule of `algorithms.static_scales` for scales of activations in the file; None: the default.
        hardware: what must compute the formats, by a name of `targets.hardware`; None: whatever the container is for.
    """

    to: str = "gguf"
    effort: str = "fast"
    calibration: str | Path | None = None
    memory: str | int = "4GB"
    threads: int | None = None
    seed: int = 0
    imatrix: str | Path | None = None
    algorithm: str | None = None
    fold: bool = True
    tune: bool | None = None
    kv_cache: str | None = None
    hardware: str | None = None
    static_scale: str | None = None

    def __post_init__(self) -> None:
        if self.effort not in EFFORTS:
            raise FewbitsError("unknown effort", found=repr(self.effort), allowed=", ".join(EFFORTS))
        if self.calibration is not None and self.effort == "fast":
            raise FewbitsError(
                "--calibration has no use with --effort fast, which rounds without looking at the model's inputs",
                action="Leave it out, or use --effort balanced",
            )
        if self.imatrix is not None and self.effort != "fast":
            raise FewbitsError(
                "--imatrix takes the place of calibration", found=f"--effort {self.effort}", allowed="fast",
                action="Leave out one of the two",
            )  # fmt: skip
        if self.kv_cache is not None and self.effort == "fast":
            raise FewbitsError(
                "--kv-cache needs calibration, which sees how large keys and values get",
                found="--effort fast",
                allowed="balanced, best",
            )
        if self.static_scale is not None:
            check_rule(self.static_scale)
            if self.effort == "fast":
                raise FewbitsError(
                    "--static-scale needs calibration", found="--effort fast", allowed="balanced, best"
                )
        self._check_algorithm()
        if self.tune and self.effort not in TUNED_EFFORTS:
            raise FewbitsError(
                "--tune is for the slowest effort",
                found=f"--effort {self.effort}",
                allowed=", ".join(TUNED_EFFORTS),
            )
        if self.threads is not None and self.threads < 1:
            raise FewbitsError("--threads is out of range", found=self.threads, allowed="1 or more")

    @property
    def tuning(self) -> str:
        """What the header says of tuning before it is through, see `Provenance`."""
        if self.tune is None:
            return PENDING if self.effort in TUNED_EFFORTS else ""
        return ASKED_FOR if self.tune else ""

    def _check_algorithm(self) -> None:
        if self.algorithm is None:
            return
        if self.imatrix is not None and self.algorithm != weighted_rounding.NAME:
            raise FewbitsError(
                "--imatrix is for rounding by importance", found=f"--algorithm {self.algorithm}",
                allowed=weighted_rounding.NAME, action="Leave out one of the two",
            )  # fmt: skip
        if self.effort == "fast" and self.imatrix is None and needs_statistics(self.algorithm):
            raise FewbitsError(
                f"--algorithm {self.algorithm} needs calibration",
                found="--effort fast",
                allowed="balanced, best",
            )

    @property
    def memory_bytes(self) -> int:
        """The memory as a number."""
        return parse_bytes(self.memory)

    @property
    def cores(self) -> int:
        """The threads as a number."""
        return self.threads or usable_cores()


@dataclass(frozen=True)
class Job:
    """Everything that decides the bytes of the output.

    Attributes:
        metadata: all of it, provenance included.
        calibration: what is known of the model from calibration; None where nothing asks for it.
        importance: what an importance matrix says of the tensors; None without one.
        tuned: whether the output holds numbers that were tuned after its codes were chosen.
    """

    checkpoint: Checkpoint
    exporter: Exporter
    tensors: list[OutputTensor]
    metadata: Mapping[str, Any]
    plan: Plan
    provenance: Provenance
    layout: Layout
    calibration: Calibration | None = None
    importance: Importance | None = None
    tuned: bool = False

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know about this source in this container."""
        own = (
            *(self.calibration.warnings if self.calibration else ()),
            *(self.importance.warnings(self.plan.tensors) if self.importance else ()),
        )
        if self.exporter.hardware:
            container = self.exporter.name.removesuffix(DIRECTORY_SUFFIX)
            formats = self.plan.formats()
            own = (*hardware_notes(container, self.exporter.hardware, self.tensors, formats), *own)
        return (*self.checkpoint.warnings, *self.exporter.notes(self.checkpoint, self.plan.formats()), *own)

    @property
    def run(self) -> str:
        """Identity of the run, for resuming: the header holds the source's hash, the plan, the seed, the version."""
        return self.layout.sha256


@dataclass(frozen=True)
class Preparation:
    """What is known before formats are chosen.

    Attributes:
        like: the choices of the artifact that is to be made again; None without one.
        file_size: bytes of the whole output for some choices.
        cache_scales: those of the tensors that hold scales of the key-value cache.
    """

    checkpoint: Checkpoint
    exporter: Exporter
    tensors: list[OutputTensor]
    metadata: Mapping[str, Any]
    provenance: Provenance
    settings: Settings
    calibration: Calibration | None
    importance: Importance | None
    like: dict[str, TensorChoice] | None
    file_size: FileSize
    cache_scales: tuple[OutputTensor, ...] = ()


def prepare(source: str | Path, goal: Goal, settings: Settings, progress: Progress) -> Preparation:
    """Read the source, and calibrate if the effort asks for it.

    Raises:
        FewbitsError: whatever is wrong with the source, the text or their combination.
    """
    exporter = get_exporter(settings.to)
    described = goal.describe(exporter.default_format)
    if settings.hardware is not None:
        container = settings.to.lower().removesuffix(DIRECTORY_SUFFIX)
        exporter = for_hardware(exporter, container, settings.hardware)
        described = f"{goal.describe(exporter.default_format)} --hardware {exporter.hardware}"
    if settings.kv_cache is not None:
        check_kv_cache(exporter, settings.kv_cache)
    checkpoint = open_checkpoint(source)
    tensors = exporter.tensors(checkpoint)
    metadata = exporter.metadata(checkpoint)
    provenance = Provenance(
        # A hub id's folder is named after its commit, which says less than the id.
        source=checkpoint.path.name if Path(source).exists() else str(source),
        source_hash=content_hash(checkpoint), goal=described,
        effort=settings.effort, seed=settings.seed,
    )  # fmt: skip
    like: dict[str, TensorChoice] | None = None
    if goal.like is not None:
        if settings.algorithm is not None:
            raise PlanError("--algorithm has no use with --like: the artifact's plan names its algorithms")
        provenance, like = _like(Path(goal.like), provenance)
        fold = bool(provenance.folds) if provenance.calibration else settings.fold
        settings = replace(
            settings, effort=provenance.effort, seed=provenance.seed, fold=fold,
            tune=None if provenance.tuning.startswith(NOT_TRIED) else bool(provenance.tuning),
            kv_cache=provenance.kv_cache or None, static_scale=provenance.static_scale or None,
        )  # fmt: skip
    calibration, importance = None, None
    scales: list[OutputTensor] = []
    if _asks_for_calibration(goal, settings, like):
        check_goal(tensors, exporter, metadata, goal)
        require_models_extra(f"--effort {settings.effort}")
        from fewbits.pipeline.calibrate import calibrate, with_input_scales

        named = _commonest(goal, like)
        calibration = calibrate(checkpoint, exporter, tensors, metadata, settings, progress, named)
        provenance = replace(_calibrated(provenance, calibration), tuning=settings.tuning)
        rule = settings.static_scale or DEFAULT_RULE
        tensors = with_input_scales(folded(tensors, calibration.folds), calibration, exporter, rule)
        provenance = replace(provenance, static_scale=settings.static_scale or "")
        if settings.kv_cache is not None:
            from fewbits.pipeline.kv_cache import cache_scale_tensors

            scales = cache_scale_tensors(settings.kv_cache, calibration, exporter, tensors, metadata)
            provenance = replace(provenance, kv_cache=settings.kv_cache)
    elif settings.imatrix is not None or provenance.imatrix:
        from fewbits.pipeline.importance import read_importance

        importance = read_importance(settings.imatrix, tensors, provenance.imatrix_hash if like else None)
        provenance = replace(provenance, imatrix=importance.name, imatrix_hash=importance.sha256)
    tensors = [*tensors, *scales]
    file_size = _size_estimate(tensors, exporter, metadata, provenance)
    return Preparation(
        checkpoint,
        exporter,
        tensors,
        metadata,
        provenance,
        settings,
        calibration,
        importance,
        like,
        file_size,
        tuple(scales),
    )


def _commonest(goal: Goal, like: Mapping[str, TensorChoice] | None) -> str:
    """The format that most maps will have, as far as that is known before formats are chosen; else ""."""
    if like is None and goal.plan is not None:
        like = read_plan(goal.plan).tensors
    if like is None:
        return (goal.format or "").upper()
    formats = Counter(choice.format for choice in like.values() if choice.algorithm != NONE)
    return max(formats, key=lambda name: (formats[name], name), default="")


def _asks_for_calibration(goal: Goal, settings: Settings, like: Mapping[str, TensorChoice] | None) -> bool:
    """Whether the choice of formats or of codes looks at the model's inputs."""
    if settings.effort == "fast":
        return False
    if settings.kv_cache is not None:
        return True
    if goal.plain:
        return False
    if like is None and goal.plan is not None:
        like = read_plan(goal.plan).tensors
    if settings.algorithm is not None:
        return goal.optimised or needs_statistics(settings.algorithm)
    return like is None or any(needs_statistics(choice.algorithm) for choice in like.values())


def prepare_job(source: str | Path, goal: Goal, settings: Settings, progress: Progress | None = None) -> Job:
    """Read the source, calibrate if the effort asks for it, and choose the plan; no output is written.

    Raises:
        FewbitsError: whatever is wrong with the source, the goal or their combination.
    """
    progress = progress or Silent()
    if goal.max_kl is not None and settings.algorithm is not None:
        raise PlanError(
            "--max-kl has no use with --algorithm: only the effort's own algorithm has a prediction",
            action="Leave out one of the two",
        )
    ready = prepare(source, goal, settings, progress)
    choices, kl = (ready.like, None) if ready.like else _choose(ready, goal, progress)
    # Plan files are about weights.
    choices = {**{t.name: plain_format(t) for t in ready.cache_scales}, **choices}
    choices = _runnable(check_choices(ready.tensors, ready.exporter, choices), ready)
    job = assemble(ready.checkpoint, ready.exporter, ready.tensors, ready.metadata, choices, ready.provenance)
    # Prices are those of the effort's own algorithm.
    plan = replace(job.plan, predicted_kl=kl if settings.algorithm is None else None)
    return replace(job, plan=plan, calibration=ready.calibration, importance=ready.importance)


def _runnable(choices: Mapping[str, TensorChoice], ready: Preparation) -> dict[str, TensorChoice]:
    """The choices with the algorithm that was asked for, and where what one needs isn't known, with another."""
    asked, calibration = ready.settings.algorithm, ready.calibration
    covered = ready.importance.covered if ready.importance else frozenset()
    known = calibration.segments.keys() if calibration else covered
    found = {}
    for name, choice in choices.items():
        if choice.algorithm == NONE:
            found[name] = choice
            continue
        algorithm = asked or choice.algorithm
        if calibration is None and name in covered and algorithm == DEFAULT_ALGORITHM:
            algorithm = weighted_rounding.NAME
        if needs_statistics(algorithm) and name not in known:
            algorithm = DEFAULT_ALGORITHM
        elif needs_statistics(algorithm) and calibration is None:
            algorithm = weighted_rounding.NAME
        found[name] = replace(choice, algorithm=algorithm)
    return found


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
    ready: Preparation, goal: Goal, progress: Progress
) -> tuple[dict[str, TensorChoice], float | None]:
    tensors, exporter, calibration = ready.tensors, ready.exporter, ready.calibration

    def file_size(choices: Mapping[str, TensorChoice]) -> int:
        return ready.file_size(_runnable(choices, ready))

    if calibration is None:
        return rounded_choices(tensors, exporter, goal, file_size), None
    from fewbits.pipeline.calibrate import prices
    from fewbits.pipeline.calibrated_plan import calibrated_choices

    weights = sum(prod(t.shape) for t in tensors)
    near = goal.bits if goal.size is None else 8 * parse_bytes(goal.size) / weights
    pinned = pinned_tensors(tensors, goal)
    priced = (
        prices(calibration, exporter, tensors, ready.settings, near, progress, pinned)
        if goal.optimised
        else {}
    )
    return calibrated_choices(tensors, exporter, goal, file_size, calibration, priced)


def _size_estimate(
    tensors: list[OutputTensor], exporter: Exporter, metadata: Mapping[str, Any], provenance: Provenance
) -> FileSize:
    """A fast size of the whole file for some choices: exact but for the header's last alignment, rounded up.

    The header is made once, when a size is first asked for, since a tokenizer's metadata takes long; only the
    plan's text in it varies.
    """
    align = exporter.alignment

    def data(formats: Mapping[str, str]) -> int:
        return sum(-(-tensor_nbytes(t, formats[t.name]) // align) * align for t in tensors)

    @cache
    def fixed() -> int:
        base = build_plan(exporter.name, tensors, uniform(tensors, exporter, exporter.formats[0]), 0, "")
        full = {**metadata, **provenance_metadata(provenance, base)}
        varying = exporter.header_nbytes(tensors, base.formats(), base.choices_json())
        return exporter.layout(tensors, base.formats(), full).size - varying - data(base.formats())

    def file_size(choices: Mapping[str, TensorChoice]) -> int:
        made = build_plan(exporter.name, tensors, choices, 0, "")
        varying = exporter.header_nbytes(tensors, made.formats(), made.choices_json())
        return fixed() + varying + max(align, _ALIGNMENTS) + data(made.formats())

    return file_size


def _like(path: Path, provenance: Provenance) -> tuple[Provenance, dict[str, TensorChoice]]:
    """Plan, goal, effort and seed of an artifact that fewbits made."""
    described = read_description(path)
    metadata = open_checkpoint(path).metadata if described is None else described.metadata
    made = Provenance.from_metadata(metadata, str(path))
    choices = parse_choices(made.plan_data, f"the plan in {path}")
    made = replace(made, source=provenance.source, source_hash=provenance.source_hash)
    return replace(made, exported="", exported_hash=""), choices


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
    return replace(
        provenance, calibration=calibration.name, calibration_hash=calibration.sha256,
        folds=folds_hash(calibration.folds) if calibration.folds else "",
    )  # fmt: skip
