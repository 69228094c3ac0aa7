"""What is known of a container's runtimes, as data, from which `fewbits targets` and docs/targets.md are made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scheme:
    """Formats that hardware computes alike.

    Attributes:
        title: as the field calls it, e.g. ``W4A16 integers``.
        formats: fewbits' names or grammars of names, e.g. ``INT4_G{32|64|128}_SYM``.
        hardware: what computes it, and from which generation on.
        limits: what its kernels ask of shapes or groups; "" for nothing.
        sources: public pages or packages' files that say so.
    """

    title: str
    formats: tuple[str, ...]
    hardware: str
    limits: str = ""
    sources: tuple[str, ...] = ()


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
