"""What the processor and its memory have used, in joules, where the system lets it be read.

Linux shows the counters of RAPL (Intel's and AMD's processors; Intel SDM volume 3, "Platform Specific Power Management
Support") as powercap zones (Documentation/power/powercap/powercap.rst in the kernel's source):

    intel-rapl:0/           name "package-0"      all cores, caches and the rest of one processor
      intel-rapl:0:0/       name "core"           a part of the package
      intel-rapl:0:1/       name "dram"           the memory at it, which the package doesn't include
    intel-rapl:1/           name "psys"           the whole board, packages included

Each has energy_uj, microjoules since some moment, and max_energy_range_uj, from which it starts again at 0. What is
read is the machine's, not a process's: with nothing else running it is what a task costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fewbits.errors import EngineError

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Counter:
    """One zone.

    Attributes:
        energy: the file of microjoules.
        wraps_at: microjoules after which it starts again; 0 where the system doesn't say.
    """

    energy: Path
    wraps_at: int

    def read(self) -> int:
        """Microjoules.

        Raises:
            EngineError: the system doesn't let it be read (any more), or no number is in it.
        """
        try:
            return int(self.energy.read_text())
        except (OSError, ValueError) as error:
            raise EngineError("the energy counter can't be read", found=str(error)) from error


@dataclass(frozen=True)
class EnergyMeter:
    """The zones that together are the machine's processors and memory, each counted once.

    Attributes:
        counters: of the zones; empty if there are none to read.
        missing: why there is nothing to read; empty if there is.
    """

    counters: tuple[Counter, ...]
    missing: str

    def read(self) -> tuple[int, ...]:
        """The counters now, for `joules_since`.

        Raises:
            EngineError: a counter can't be read any more.
        """
        return tuple(counter.read() for counter in self.counters)

    def joules_since(self, before: tuple[int, ...]) -> float:
        """What has been used since `before`; right as long as no counter started again more than once.

        Raises:
            EngineError: a counter can't be read any more.
        """
        used = 0
        for counter, begun, now in zip(self.counters, before, self.read(), strict=True):
            if now < begun and not counter.wraps_at:
                raise EngineError(
                    "the energy counter went back", found=f"{now} after {begun} in {counter.energy}"
                )
            used += now - begun if now >= begun else now + counter.wraps_at - begun
        return used / 1e6


def energy_meter(powercap: Path = POWERCAP) -> EnergyMeter:
    """The machine's counters of packages and of the memory at them.

    Args:
        powercap: the folder of zones.
    """
    # The zones of intel-rapl before those of drivers with longer names.
    zones = sorted(powercap.glob("*/energy_uj"), key=lambda path: (len(path.parent.name.split(":")[0]), path))
    if not zones:
        return EnergyMeter((), f"this system shows no energy counter: no zone in {powercap}")
    try:
        found = _counters([path.parent for path in zones])
    except (OSError, ValueError) as error:
        return EnergyMeter((), f"the energy counter can't be read: {error}")
    except EngineError as error:
        return EnergyMeter((), f"the energy counter can't be read: {error.found}")
    return EnergyMeter(tuple(found), "" if found else f"no zone in {powercap} is a processor package")


def _counters(zones: list[Path]) -> list[Counter]:
    """Those of packages, and of memory that belongs to one; what two drivers show (intel-rapl-mmio) once."""
    names = {zone.name: (zone / "name").read_text().strip() for zone in zones}
    found: dict[tuple[str, str], Counter] = {}
    for zone in zones:
        name, parent = names[zone.name], names.get(zone.name.rpartition(":")[0], "")
        if not (name.startswith("package") or (name == "dram" and parent.startswith("package"))):
            continue
        limit = zone / "max_energy_range_uj"
        counter = Counter(zone / "energy_uj", int(limit.read_text()) if limit.exists() else 0)
        counter.read()
        found.setdefault((parent, name), counter)
    return list(found.values())
