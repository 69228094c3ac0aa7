"""Progress on standard error: what is being done, how fast, how long it will take."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


class TerminalProgress:
    """A bar per stage in a terminal; a line per stage where standard error is a file or a pipe."""

    def __init__(self) -> None:
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                Progress,
                TaskProgressColumn,
                TextColumn,
                TimeRemainingColumn,
            )

            self._bar = Progress(
                TextColumn("{task.description:<11}"), BarColumn(), TaskProgressColumn(),
                TextColumn("{task.fields[speed]:>16}"), TimeRemainingColumn(),
                TextColumn("{task.fields[detail]}"),
                console=Console(stderr=True),
            )  # fmt: skip
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def stage(self, name: str, total: int, unit: str) -> None:
        """A new stage begins."""
        self._unit = unit
        if self._bar is None:
            sys.stderr.write(f"{name}: {total:,} {unit}\n")
        else:
            self._task = self._bar.add_task(name, total=total, speed="", detail="")

    def advance(self, done: int, detail: str = "") -> None:
        """`done` more units are finished."""
        if self._bar is not None and self._task is not None:
            speed = self._bar.tasks[self._task].speed or 0.0
            shown = f"{speed / 1e6:.1f} M{self._unit}/s" if speed > 1e5 else f"{speed:.1f} {self._unit}/s"
            self._bar.update(self._task, advance=done, speed=shown, detail=detail)

    def message(self, text: str) -> None:
        """Something the user should know now."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            sys.stderr.write(f"{text}\n")
