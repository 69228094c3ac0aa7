"""The allocation alone: what `quantize` would do, without doing it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fewbits.pipeline.goal import Goal
from fewbits.pipeline.job import DEFAULT_EFFORT, Settings, prepare_job
from fewbits.planning.plan import Plan
from fewbits.progress import Progress


def plan(
    source: str | Path,
    *,
    to: str = "gguf",
    format: str | None = None,  # noqa: A002  the command line's name for it
    bits: float | None = None,
    size: str | int | None = None,
    max_kl: float | None = None,
    pins: Sequence[str] = (),
    effort: str = DEFAULT_EFFORT,
    calibration: str | Path | None = None,
    memory: str | int = "4GB",
    threads: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Plan:
    """The plan that `quantize` would follow for the same arguments, its size exact.

    Raises:
        FewbitsError: whatever is wrong with the source or the goal.
    """
    goal = Goal(format=format, bits=bits, size=size, max_kl=max_kl, pins=tuple(pins))
    settings = Settings(to, effort, calibration, memory, threads, seed)
    return prepare_job(source, goal, settings, progress).plan
