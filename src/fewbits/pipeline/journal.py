"""Work kept on disk as it is made, so that a killed run goes on where it was.

Beside OUTPUT lie, until it is whole:

    OUTPUT.fewbits-part       the file itself, each tensor at its final offset
    OUTPUT.fewbits-journal    line 1: {"fewbits": 1, "run": <hash of everything that decides the bytes>}
                              then a line per finished tensor: {"tensor": name, "crc32": of its bytes}

A line is appended after the tensor's bytes. A torn last line is a tensor that wasn't finished. Anything else
that doesn't fit is damage and is refused, since going on could end in other bytes.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from fewbits.errors import OutputError, ResumeError
from fewbits.export.exporter import Region

_SYNC_SECONDS = 2.0  # a power cut loses at most this much work; a killed process loses none
_READ = 1 << 22


def part_path(output: Path) -> Path:
    """Where the unfinished file lies."""
    return output.with_name(output.name + ".fewbits-part")


def journal_path(output: Path) -> Path:
    """Where the list of its finished tensors lies."""
    return output.with_name(output.name + ".fewbits-journal")


class Journal:
    """The unfinished output of one run, open for writing. A context manager; holds a lock on the file."""

    def __init__(self, output: Path, run: str) -> None:
        self.output = output
        self.run = run
        self.finished: dict[str, int] = {}
        self._undone: list[str] = []
        self._part = -1
        self._lines = -1
        self._synced = 0.0

    def __enter__(self) -> Self:
        try:
            self._part = os.open(part_path(self.output), os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(self._part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._part)
            raise OutputError(
                f"{self.output} is being written by another fewbits",
                action="Wait for it, or choose another output",
            ) from error
        except OSError as error:
            raise OutputError(f"{self.output} can't be written", found=error.strerror) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in (self._lines, self._part):
            if descriptor >= 0:
                os.close(descriptor)

    def resume(self, regions: Mapping[str, Region], size: int, *, discard: bool) -> None:
        """Take over what an earlier run of the same job finished, or begin.

        Args:
            regions: where each tensor lies.
            size: of the whole file.
            discard: begin anew when the work on disk belongs to another job, instead of refusing.

        Raises:
            ResumeError: the work on disk is damaged, or belongs to another job.
        """
        path = journal_path(self.output)
        lines = self._read_lines(path)
        if lines is not None and lines[0] != self.run:
            if not discard:
                raise ResumeError(
                    f"{path} belongs to a run with another source, plan or version of fewbits",
                    action=f"Run that command again to finish it, or pass --force, or delete {path}",
                )
            lines = None
        if lines is None:
            self._undone = []
            os.ftruncate(self._part, 0)
            path.write_text(json.dumps({"fewbits": 1, "run": self.run}) + "\n", encoding="utf-8")
        else:
            self.finished = self._check(path, lines[1], regions, size)
        os.ftruncate(self._part, size)
        self._lines = os.open(path, os.O_WRONLY | os.O_APPEND)
        self._synced = time.monotonic()

    def _read_lines(self, path: Path) -> tuple[str, dict[str, int]] | None:
        """(run, finished tensors) of an existing journal; None when there is none."""
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return None
        whole, newline, torn = text.rpartition(b"\n")
        if not newline:
            return None  # killed while the first line was being written
        try:
            head, *rest = [json.loads(line) for line in whole.split(b"\n")]
            entries = {str(entry["tensor"]): int(entry["crc32"]) for entry in rest}
            self._undone = [str(entry["tensor"]) for entry in rest if entry.get("undone")]
            run = str(head["run"])
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(path, "a line that isn't a journal entry") from error
        if torn:
            with path.open("r+b") as stream:
                stream.truncate(len(text) - len(torn))
        return run, entries

    def _check(
        self, path: Path, entries: dict[str, int], regions: Mapping[str, Region], size: int
    ) -> dict[str, int]:
        length = os.fstat(self._part).st_size
        if entries and length != size:
            raise self._damaged(
                path, f"{part_path(self.output).name} of {length:,} bytes instead of {size:,}"
            )
        for name, crc in entries.items():
            if name not in regions:
                raise self._damaged(path, f"a tensor {name!r} that the output doesn't have")
            if self.checksum(regions[name]) != crc:
                raise self._damaged(path, f"bytes of {name} that differ from what was written")
        return entries

    def _damaged(self, path: Path, found: str) -> ResumeError:
        return ResumeError(
            "the work of the interrupted run is damaged", found=found, action=f"Delete {path} to begin anew"
        )

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write bytes at an absolute offset.

        Raises:
            OutputError: the disk is full or fails; what was finished stays for the next run.
        """
        view = memoryview(data)
        try:
            while view:
                written = os.pwrite(self._part, view, offset)
                view, offset = view[written:], offset + written
        except OSError as error:
            raise OutputError(
                f"writing {part_path(self.output)} failed", found=error.strerror,
                action="Make room and run the same command again: it goes on where it stopped",
            ) from error  # fmt: skip

    def finish(self, name: str, crc: int, *, undone: bool = False) -> None:
        """Note that all bytes of a tensor are written; `undone` if the plan's algorithm wasn't kept for it."""
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            self.sync()
        entry = {"tensor": name, "crc32": crc, **({"undone": True} if undone else {})}
        os.write(self._lines, json.dumps(entry).encode() + b"\n")
        self.finished[name] = crc
        self._undone += [name] if undone else []

    @property
    def undone(self) -> tuple[str, ...]:
        """Finished tensors for which the plan's algorithm wasn't kept."""
        return tuple(self._undone)

    def sync(self) -> None:
        """Force the bytes to the disk."""
        os.fdatasync(self._part)
        os.fdatasync(self._lines)
        self._synced = time.monotonic()

    def checksum(self, region: Region) -> int:
        """CRC-32 of a region as it is on disk now."""
        crc, offset, left = 0, region.offset, region.nbytes
        while left:
            data = os.pread(self._part, min(left, _READ), offset)
            if not data:
                return -1
            crc, offset, left = zlib.crc32(data, crc), offset + len(data), left - len(data)
        return crc

    def publish(self) -> None:
        """Give the whole file its name; the journal goes."""
        self.sync()
        part_path(self.output).replace(self.output)
        journal_path(self.output).unlink()
        folder = os.open(self.output.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    def discard(self) -> None:
        """Remove the unfinished work: the source can't be quantized, so nothing of it is of use."""
        for path in (part_path(self.output), journal_path(self.output)):
            path.unlink(missing_ok=True)
