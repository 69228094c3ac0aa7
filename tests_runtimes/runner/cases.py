"""What is made and run for each runtime: formats.txt of a row, for its tests, and measured.txt, for a real model.

Lines of both are CONTAINER FORMAT [SETTING…]:

    pin=PATTERN=FORMAT     see `fewbits quantize --pin`
    model=NAME             one of tests/tiny_models.py instead of the small llama
    kv-cache=NAME          see `fewbits quantize --kv-cache`
    peer=NAME[:RECIPE]     made by benchmarks/targets_peers/NAME.py instead of by fewbits
    refused                the runtime says that it doesn't take it
    unquantized            shows what the runtime's own arithmetic costs

A case's folder is named by all but the container.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROWS = Path(__file__).parents[1]
_FLAGS = ("refused", "unquantized")
_KEYS = ("pin", "model", "kv-cache", "peer")


@dataclass(frozen=True)
class Case:
    """One artifact.

    Attributes:
        container: what ``--to`` calls it.
        format: of all layers that no pin is about.
        settings: as the line has them.
    """

    container: str
    format: str
    settings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of its folder."""
        return "_".join((self.format, *self.settings))

    @property
    def refused(self) -> bool:
        """Whether the runtime is known not to take it."""
        return "refused" in self.settings

    def values(self, key: str) -> list[str]:
        """What the settings KEY=VALUE say."""
        return [s.partition("=")[2] for s in self.settings if s.startswith(f"{key}=")]

    def value(self, key: str) -> str | None:
        """The only such value, if there is one."""
        return next(iter(self.values(key)), None)


def row_names() -> list[str]:
    """All rows: folders with a formats.txt."""
    return sorted(path.parent.name for path in ROWS.glob("*/formats.txt"))


def read_cases(path: Path) -> list[Case]:
    """The cases that a file lists.

    Raises:
        SystemExit: a setting that means nothing.
    """
    cases = []
    for line in path.read_text().splitlines():
        container, name, *settings = line.split()
        for setting in settings:
            if setting not in _FLAGS and setting.partition("=")[0] not in _KEYS:
                raise SystemExit(f"{path}: what is {setting!r}?")
        cases.append(Case(container, name, tuple(settings)))
    return cases
