"""What is known of a container's runtimes, as data.

`fewbits targets`, docs/targets.md and the restriction of plans by ``--hardware`` are made from it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from fewbits.targets.hardware import HARDWARE


@dataclass(frozen=True)
class Kernel:
    """Shapes that a runtime's usual kernel for a scheme takes; for others it looks for a slower one, or has none.

    Attributes:
        name: of the kernel.
        rows: of a matrix as the runtime makes it, a multiple of this.
        columns: likewise.
        hardware: where it is the usual one, by `HARDWARE`'s names.
        limits: the same for a person, with what else it asks.
        source: a public page or a package's file that says so.
    """

    name: str
    rows: int
    columns: int
    hardware: tuple[str, ...]
    limits: str
    source: str


@dataclass(frozen=True)
class Scheme:
    """Formats that hardware computes alike.

    Attributes:
        title: as the field calls it, e.g. ``W4A16 integers``.
        formats: fewbits' names or grammars of names, e.g. ``INT4_G{32|64|128}_SYM``.
        where: what computes it, and from which generation on.
        limits: what its kernels ask of shapes or groups; "" for nothing.
        sources: public pages or packages' files that say so.
        hardware: the same by `HARDWARE`'s names; () where formats are only unpacked.
        kernel: the usual one, if it asks for shapes.
    """

    title: str
    formats: tuple[str, ...]
    where: str
    limits: str = ""
    sources: tuple[str, ...] = ()
    hardware: tuple[str, ...] = ()
    kernel: Kernel | None = None

    def covers(self, name: str) -> bool:
        """Whether a format is one of its."""
        return any(_pattern(grammar).fullmatch(name) for grammar in self.formats)

    @property
    def described(self) -> str:
        """What computes it and what that asks for."""
        kernel = self.kernel.limits if self.kernel else ""
        return "; ".join(part for part in (self.where, kernel, self.limits) if part)


@cache
def _pattern(grammar: str) -> re.Pattern[str]:
    """Of a grammar: {a|b}, {2..8}, [optional], … for anything, and ``without X`` for names that don't end in X."""
    names, _, without = grammar.partition(" without ")
    names = re.sub(r"\{(\d)\.\.(\d)\}", r"[\1-\2]", re.sub(r"\[(\w+)\]", r"(\1)?", names))
    expression = names.replace("{", "(").replace("}", ")").replace("…", ".*")
    return re.compile(rf"{expression}(?<!{without})" if without else expression)


@dataclass(frozen=True)
class Runtime:
    """A program that loads the container.

    Attributes:
        name: its own.
        serves: hardware.
        driver: what `fewbits verify --runtime` calls it; "" where fewbits can't run it.
        row: folder of tests_runtimes/ that proves it; "" for none.
        sources: public pages that say so.
    """

    name: str
    serves: str
    driver: str = ""
    row: str = ""
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Target:
    """A container, what runs it and what that computes.

    Attributes:
        container: what ``--to`` calls it.
        title: what it is, in a few words.
        runtimes: the first with a driver is what `fewbits verify` takes.
        schemes: from the most usual on.
        notes: limits that hold for all of it.
    """

    container: str
    title: str
    runtimes: tuple[Runtime, ...]
    schemes: tuple[Scheme, ...]
    notes: tuple[str, ...] = ()

    @property
    def drivers(self) -> list[str]:
        """Runtimes that fewbits can run, the preferred one first."""
        return [r.driver for r in self.runtimes if r.driver]

    @property
    def hardware(self) -> tuple[str, ...]:
        """Hardware that computes some of its formats, in the order of `HARDWARE`."""
        return tuple(name for name in HARDWARE if any(name in scheme.hardware for scheme in self.schemes))

    def schemes_on(self, hardware: str) -> list[Scheme]:
        """Those that this hardware computes."""
        return [scheme for scheme in self.schemes if hardware in scheme.hardware]

    def computes(self, name: str, hardware: str) -> bool:
        """Whether this hardware computes a format."""
        return any(scheme.covers(name) for scheme in self.schemes_on(hardware))
