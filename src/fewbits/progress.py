"""How long work reports what it is doing; the command line draws it, the API ignores it by default."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives stages of work. `done` and `total` count the same unit (bytes, chunks) within a stage."""

    def stage(self, name: str, total: int, unit: str) -> None:
        """A new stage begins."""

    def advance(self, done: int, detail: str = "") -> None:
        """`done` more units are finished; `detail` is what is being worked on."""

    def message(self, text: str) -> None:
        """Something the user should know now."""


class Silent:
    """Progress that nobody watches."""

    def stage(self, name: str, total: int, unit: str) -> None:
        """Ignore."""

    def advance(self, done: int, detail: str = "") -> None:
        """Ignore."""

    def message(self, text: str) -> None:
        """Ignore."""
