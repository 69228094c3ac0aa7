"""What can be written, what is installed here, and what each target supports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fewbits.errors import PlanError
from fewbits.export.converters import converter_names, find_converter, is_installed
from fewbits.export.registry import exporter_names, get_exporter
from fewbits.planning.for_hardware import for_hardware
from fewbits.runtimes.drive import versions_of
from fewbits.runtimes.process import install_command
from fewbits.runtimes.registry import requirements_of
from fewbits.targets.hardware import HARDWARE
from fewbits.targets.registry import target_of
from fewbits.targets.target import Runtime, Target


@dataclass(frozen=True)
class RuntimeStatus:
    """A runtime that fewbits can run.

    Attributes:
        name: what `fewbits verify --runtime` calls it.
        tested: pip requirements it was tested with.
        installed: version here of each of its packages, None where it isn't installed.
        command: that installs it.
    """

    name: str
    tested: tuple[str, ...]
    installed: Mapping[str, str | None]
    command: str

    @property
    def ready(self) -> bool:
        """Whether all its packages are installed here."""
        return None not in self.installed.values()


@dataclass(frozen=True)
class TargetReport:
    """A container with its facts and what is here of it.

    Attributes:
        name: what ``--to`` calls it.
        target: the facts.
        formats: that it can hold, from most to fewest bits.
        default: of ``--format``.
        extra: of fewbits that writing it needs; "" for none.
        writable: whether it can be written here.
        runtimes: those that fewbits can run.
    """

    name: str
    target: Target
    formats: tuple[str, ...]
    default: str
    extra: str
    writable: bool
    runtimes: tuple[RuntimeStatus, ...]


def targets(hardware: str | None = None) -> tuple[TargetReport, ...]:
    """Every container that fewbits writes, or what this hardware computes of it.

    Raises:
        PlanError: no hardware of this name.
    """
    if hardware is not None and hardware.lower() not in HARDWARE:
        raise PlanError("unknown hardware", found=repr(hardware), allowed=", ".join(HARDWARE))
    reports = (_report(name) for name in (*exporter_names(), *converter_names()))
    if hardware is None:
        return tuple(reports)
    return tuple(_restricted(r, hardware.lower()) for r in reports if hardware.lower() in r.target.hardware)


def _restricted(report: TargetReport, hardware: str) -> TargetReport:
    """What a kind of hardware computes of a container."""
    exporter = for_hardware(get_exporter(report.name), report.name, hardware)
    target = replace(report.target, schemes=tuple(report.target.schemes_on(hardware)))
    return replace(report, target=target, formats=exporter.formats, default=exporter.default_format)


def _report(name: str) -> TargetReport:
    converter, exporter, target = find_converter(name), get_exporter(name), target_of(name)
    return TargetReport(
        name=name, target=target, formats=exporter.formats, default=exporter.default_format,
        extra=converter.extra if converter else "",
        writable=converter is None or all(is_installed(package) for package in converter.packages),
        runtimes=tuple(runtime_status(driver) for driver in target.drivers),
    )  # fmt: skip


def runtime_status(driver: str) -> RuntimeStatus:
    """What is installed of a runtime."""
    tested = requirements_of(driver)
    return RuntimeStatus(driver, tested, versions_of(tested), install_command(driver))


def describe(reports: tuple[TargetReport, ...]) -> str:
    """For a person."""
    return "\n\n".join("\n".join(_lines(report)) for report in reports)


def _lines(report: TargetReport) -> list[str]:
    lines = [f"{report.name}: {report.target.title}"]
    if not report.writable:
        lines.append(f"  to write it:  pip install 'fewbits[{report.extra}]'")
    lines += [f"  {_runtime(runtime)}" for runtime in report.target.runtimes]
    for status in report.runtimes:
        have = ", ".join(f"{n} {v}" for n, v in status.installed.items() if v)
        lines.append(
            f"  fewbits verify: {status.name} " + (f"is here ({have})" if status.ready else "isn't installed")
        )
        if not status.ready:
            lines.append(f"                  {status.command}")
    for scheme in report.target.schemes:
        lines.append(f"  {scheme.title}: {', '.join(scheme.formats)}")
        lines.append(f"      {scheme.described}")
        lines.append(f"      --hardware {' '.join(scheme.hardware) or 'has none of it'}")
    lines += [f"  note: {note}" for note in report.target.notes]
    return lines


def _runtime(runtime: Runtime) -> str:
    return f"runs in {runtime.name}: {runtime.serves}"
