"""The allocation alone: what `quantize` would do, without doing it, for one size or for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fewbits.errors import PlanError
from fewbits.pipeline.goal import Goal, pinned_tensors
from fewbits.pipeline.job import Settings, effort_or_default, prepare, prepare_job
from fewbits.planning.frontier import FilePoint
from fewbits.planning.plan import Plan
from fewbits.progress import Progress, Silent

DEFAULT_POINTS = 24
FRONTIER_EFFORT = "balanced"


def plan(
    source: str | Path,
    *,
    to: str = "gguf",
    format: str | None = None,  # noqa: A002  the command line's name for it
    bits: float | None = None,
    size: str | int | None = None,
    max_kl: float | None = None,
    pins: Sequence[str] = (),
    effort: str | None = None,
    calibration: str | Path | None = None,
    memory: str | int = "4GB",
    threads: int | None = None,
    seed: int = 0,
    algorithm: str | None = None,
    fold: bool = True,
    hardware: str | None = None,
    progress: Progress | None = None,
) -> Plan:
    """The plan that `quantize` would follow for the same arguments, its size exact.

    Raises:
        FewbitsError: whatever is wrong with the source or the goal.
    """
    goal = Goal(format=format, bits=bits, size=size, max_kl=max_kl, pins=tuple(pins))
    settings = Settings(
        to, effort_or_default(effort), calibration, memory, threads, seed, algorithm=algorithm, fold=fold,
        hardware=hardware,
    )  # fmt: skip
    progress = progress or Silent()
    job = prepare_job(source, goal, settings, progress)
    for warning in job.calibration.warnings if job.calibration else ():
        progress.message(warning)
    return job.plan


def frontier(
    source: str | Path,
    *,
    points: int = DEFAULT_POINTS,
    to: str = "gguf",
    pins: Sequence[str] = (),
    effort: str = FRONTIER_EFFORT,
    calibration: str | Path | None = None,
    memory: str | int = "4GB",
    threads: int | None = None,
    seed: int = 0,
    fold: bool = True,
    hardware: str | None = None,
    progress: Progress | None = None,
) -> list[FilePoint]:
    """For sizes from the smallest that there can be to the best, the least predicted KL divergence.

    Args:
        source: Hugging Face directory, hub id, or GGUF file.
        points: how many sizes, at most; 2 or more.
        to: container.
        pins: ``PATTERN=FORMAT`` texts that fix the format of some tensors.
        effort: ``balanced`` or ``best``.
        calibration: as for `quantize`.
        memory: as for `quantize`.
        threads: as for `quantize`.
        seed: of everything random.
        fold: as for `quantize`.
        hardware: as for `quantize`.
        progress: receives what is being done.

    Returns:
        Points by rising size and falling loss. `quantize` with a point's bytes as `size` makes such a file; its
        own prediction can differ a little, since for one size formats near it are priced more exactly.

    Raises:
        FewbitsError: whatever is wrong with the source, the text or the pins.
    """
    if points < 2:
        raise PlanError("too few points for a frontier", found=points, allowed="2 or more")
    settings = Settings(to, effort, calibration, memory, threads, seed, fold=fold, hardware=hardware)
    if effort == "fast":
        raise PlanError(
            "the frontier needs to know the model", found="effort fast", allowed="balanced, best",
            action=f"Use --effort {FRONTIER_EFFORT}",
        )  # fmt: skip
    progress = progress or Silent()
    goal = Goal(pins=tuple(pins))
    ready = prepare(source, goal, settings, progress)
    assert ready.calibration is not None
    from fewbits.pipeline.calibrate import prices
    from fewbits.pipeline.calibrated_plan import calibrated_frontier

    for warning in ready.calibration.warnings:
        progress.message(warning)
    pinned = pinned_tensors(ready.tensors, goal)
    priced = prices(ready.calibration, ready.exporter, ready.tensors, settings, None, progress, pinned)
    return calibrated_frontier(
        ready.tensors, ready.exporter, goal, ready.file_size, ready.calibration, priced, points
    )
