"""Time and memory of a command with all processes that it starts (Linux)."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Seconds between two looks at the memory.
_INTERVAL = 0.5


@dataclass(frozen=True)
class Run:
    """A command that succeeded.

    Attributes:
        output: its standard output.
        seconds: wall time.
        cpu_seconds: of all its processes; half the wall time per core or less says that the machine was busy.
        peak_memory: bytes resident at the peak, over all processes, a page that several share counted once
            (the sum of their proportional set sizes, looked at twice a second).
        peak_resident: the same with shared pages counted for each process (the sum of their resident set sizes).
    """

    output: str
    seconds: float
    cpu_seconds: float
    peak_memory: int
    peak_resident: int

    def cost(self) -> dict[str, float | int]:
        """The figures, as results keep them."""
        return {
            "seconds": round(self.seconds, 1),
            "cpu_seconds": round(self.cpu_seconds, 1),
            "peak_memory_bytes": self.peak_memory,
            "peak_resident_bytes": self.peak_resident,
        }


def run_measured(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> Run:
    """Run a command in a session of its own, so that its descendants can be told from everything else.

    Raises:
        SystemExit: the command failed; the end of what it printed is in the message.
    """
    words = [str(word) for word in command]
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        cpu, began = _children_cpu(), time.monotonic()
        process = subprocess.Popen(
            words, stdout=output, stderr=errors, env=environment, start_new_session=True
        )
        memory = resident = 0
        # Its session of its own also keeps it from being ended with us.
        before = signal.signal(signal.SIGTERM, _leave)
        try:
            while process.poll() is None:
                shared_once, each = session_memory(process.pid)
                memory, resident = max(memory, shared_once), max(resident, each)
                try:
                    process.wait(_INTERVAL)
                except subprocess.TimeoutExpired:
                    continue
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
        finally:
            signal.signal(signal.SIGTERM, before)
        seconds = time.monotonic() - began
        output.seek(0)
        errors.seek(0)
        printed = output.read()
        if process.returncode:
            raise SystemExit(f"{' '.join(words)} failed:\n{printed[-2000:]}{errors.read()[-4000:]}")
    return Run(printed, seconds, _children_cpu() - cpu, memory, resident)


def _leave(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def session_memory(session: int) -> tuple[int, int]:
    """Bytes resident now in all processes of a session: shared pages counted once, and counted for each."""
    memory = resident = 0
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            # The name, in parentheses, may hold anything; the session is the fourth field after it.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) != session:
                continue
            text = (folder / "smaps_rollup").read_text()
        except (OSError, IndexError):  # ended meanwhile, or not ours to read
            continue
        memory += _kilobytes(text, "Pss")
        resident += _kilobytes(text, "Rss")
    return memory, resident


def _kilobytes(text: str, field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
