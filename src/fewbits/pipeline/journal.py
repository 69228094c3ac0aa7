"""Work kept on disk as it is made, so that a killed run goes on where it was.

Beside OUTPUT lie, until it is whole:

    OUTPUT.fewbits-part       the file itself, each tensor at its final offset; or the folder with such files
    OUTPUT.fewbits-journal    line 1: {"fewbits": 2, "run": <hash of everything that decides the bytes>}
                              then a line per finished tensor: {"tensor": name, "crc32": of each of its parts}
    OUTPUT.fewbits-tuning     what tuning found, once it is through (see `tuning`)

A line is appended after the tensor's bytes. A torn last line is a tensor that wasn't finished. Anything else
that doesn't fit is damage and is refused, since going on could end in other bytes. A finished tensor that is to be
written again is taken off the list first, {"tensor": name, "open": true}: killed then, a run makes it anew.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from zlib_ng.zlib_ng import crc32

from fewbits.errors import OutputError, ResumeError
from fewbits.export.exporter import ITSELF, Layout, Region
from fewbits.operating_system import lock_file
from fewbits.pipeline.syncing import BackgroundSync

_SYNC_SECONDS = 0.5  # a power cut loses about this much work; a killed process loses none
_READ = 1 << 20  # stays in a core's cache between reading and what is done with it
_VERSION = 2


def part_path(output: Path) -> Path:
    """Where the unfinished file or folder lies."""
    return output.with_name(output.name + ".fewbits-part")


def journal_path(output: Path) -> Path:
    """Where the list of its finished tensors lies."""
    return output.with_name(output.name + ".fewbits-journal")


def tuning_path(output: Path) -> Path:
    """Where the result of tuning lies."""
    return output.with_name(output.name + ".fewbits-tuning")


def replaced_path(output: Path) -> Path:
    """Where a folder that is being replaced lies for a moment."""
    return output.with_name(output.name + ".fewbits-old")


class Journal:
    """The unfinished output of one run, open for writing. A context manager; holds a lock on the output."""

    def __init__(self, output: Path, run: str, *, folder: bool = False) -> None:
        self.output = output
        self.run = run
        self.folder = folder
        self.finished: dict[str, tuple[int, ...]] = {}
        self._undone: list[str] = []
        self._lock = -1
        self._files: dict[str, int] = {}
        self._lines = -1
        self._syncing = BackgroundSync(self._sync, _SYNC_SECONDS)

    def __enter__(self) -> Self:
        part = part_path(self.output)
        try:
            if part.exists() and part.is_dir() != self.folder:
                raise OutputError(
                    f"{part} is in the way", found="a folder" if part.is_dir() else "a file",
                    action=f"Delete {part}: it is unfinished work of another container",
                )  # fmt: skip
            if self.folder:
                part.mkdir(exist_ok=True)
                self._lock = os.open(part, os.O_RDONLY)
            else:
                self._lock = self._files[ITSELF] = os.open(part, os.O_RDWR | os.O_CREAT, 0o644)
            lock_file(self._lock)
        except BlockingIOError as error:
            os.close(self._lock)
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
        self._syncing.stop()
        for descriptor in {self._lines, self._lock, *self._files.values()} - {-1}:
            os.close(descriptor)

    def resume(self, layout: Layout, *, discard: bool) -> None:
        """Take over what an earlier run of the same job finished, or begin.

        Args:
            layout: of the output.
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
        self._open_files(layout, empty=lines is None)
        if lines is None:
            self._undone = []
            tuning_path(self.output).unlink(missing_ok=True)
            path.write_text(json.dumps({"fewbits": _VERSION, "run": self.run}) + "\n", encoding="utf-8")
        else:
            self.finished = self._check(path, lines[1], layout)
        for name, file in layout.files.items():
            os.ftruncate(self._files[name], file.size)
        self._lines = os.open(path, os.O_WRONLY | os.O_APPEND)
        self._syncing.start()

    def _open_files(self, layout: Layout, *, empty: bool) -> None:
        part = part_path(self.output)
        try:
            if self.folder and empty:
                for path in part.iterdir():
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            for name in layout.files:
                if name not in self._files:
                    (part / name).parent.mkdir(parents=True, exist_ok=True)
                    self._files[name] = os.open(part / name, os.O_RDWR | os.O_CREAT, 0o644)
                if empty:
                    os.ftruncate(self._files[name], 0)
        except OSError as error:
            raise OutputError(f"{self.output} can't be written", found=error.strerror) from error

    def _read_lines(self, path: Path) -> tuple[str, dict[str, tuple[int, ...]]] | None:
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
            last = {str(entry["tensor"]): entry for entry in rest}
            done = {name: entry for name, entry in last.items() if not entry.get("open")}
            entries = {name: tuple(int(c) for c in entry["crc32"]) for name, entry in done.items()}
            self._undone = [name for name, entry in done.items() if entry.get("undone")]
            run = str(head["run"])
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(path, "a line that isn't a journal entry") from error
        if torn:
            with path.open("r+b") as stream:
                stream.truncate(len(text) - len(torn))
        return run, entries

    def _check(
        self, path: Path, entries: dict[str, tuple[int, ...]], layout: Layout
    ) -> dict[str, tuple[int, ...]]:
        for name, file in layout.files.items() if entries else ():
            length = os.fstat(self._files[name]).st_size
            if length != file.size:
                shown = part_path(self.output) / name if name else part_path(self.output)
                raise self._damaged(path, f"{shown.name} of {length:,} bytes instead of {file.size:,}")
        for name, checksums in entries.items():
            if name not in layout.parts:
                raise self._damaged(path, f"a tensor {name!r} that the output doesn't have")
            if self.checksums(layout.parts[name]) != checksums:
                raise self._damaged(path, f"bytes of {name} that differ from what was written")
        return entries

    def _damaged(self, path: Path, found: str) -> ResumeError:
        return ResumeError(
            "the work of the interrupted run is damaged", found=found, action=f"Delete {path} to begin anew"
        )

    def write(self, data: bytes | memoryview, offset: int, file: str = ITSELF) -> None:
        """Write bytes at an absolute offset of one of the files.

        Raises:
            OutputError: the disk is full or fails; what was finished stays for the next run.
        """
        view = memoryview(data)
        with self._failures_named():
            while view:
                written = os.pwrite(self._files[file], view, offset)
                view, offset = view[written:], offset + written

    def finish(self, name: str, checksums: Iterable[int], *, undone: bool = False) -> None:
        """Note that all bytes of a tensor are written; `undone` if the plan's algorithm wasn't kept for it.

        `checksums` are the CRC-32 of its parts, in the layout's order.

        Raises:
            OutputError: the disk failed to take what was written before.
        """
        with self._failures_named():
            self._syncing.check()
        entry = {"tensor": name, "crc32": list(checksums), **({"undone": True} if undone else {})}
        os.write(self._lines, json.dumps(entry).encode() + b"\n")
        self.finished[name] = tuple(checksums)
        self._undone += [name] if undone else []

    def reopen(self, name: str) -> bool:
        """Take a finished tensor off the list, since it is to be written again; whether it was `undone`."""
        os.write(self._lines, json.dumps({"tensor": name, "open": True}).encode() + b"\n")
        del self.finished[name]
        undone = name in self._undone
        self._undone = [other for other in self._undone if other != name]
        return undone

    def read(self, region: Region) -> bytes:
        """The bytes of one part of a tensor as they are on disk now.

        Raises:
            OutputError: the disk fails.
        """
        data = bytearray()
        try:
            while len(data) < region.nbytes:
                left, offset = region.nbytes - len(data), region.offset + len(data)
                more = os.pread(self._files[region.file], min(left, _READ), offset)
                if not more:
                    break
                data += more
        except OSError as error:
            raise OutputError(f"reading {part_path(self.output)} failed", found=error.strerror) from error
        return bytes(data)

    @property
    def undone(self) -> tuple[str, ...]:
        """Finished tensors for which the plan's algorithm wasn't kept."""
        return tuple(self._undone)

    def sync(self) -> None:
        """Force the bytes to the disk.

        Raises:
            OutputError: it fails to take them.
        """
        with self._failures_named():
            self._syncing.check()
            self._sync()

    def _sync(self) -> None:
        for descriptor in (*self._files.values(), self._lines):
            os.fdatasync(descriptor)

    @contextmanager
    def _failures_named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"writing {part_path(self.output)} failed", found=error.strerror,
                action="Make room and run the same command again: it goes on where it stopped",
            ) from error  # fmt: skip

    def checksums(self, parts: Mapping[str, Region]) -> tuple[int, ...]:
        """CRC-32 of each part of a tensor as it is on disk now; -1 where the file ends before."""
        return tuple(self._checksum(region) for region in parts.values())

    def _checksum(self, region: Region) -> int:
        crc, offset, left = 0, region.offset, region.nbytes
        buffer = memoryview(bytearray(min(left, _READ)))
        while left:
            got = os.preadv(self._files[region.file], [buffer[:left]], offset)
            if not got:
                return -1
            crc, offset, left = crc32(buffer[:got], crc), offset + got, left - got
        return crc

    def publish(self) -> None:
        """Give the whole output its name, replacing what has it; the journal goes last.

        A folder can't take the place of another in one step: for a moment the old one has another name. Killed
        then, the same command finds everything finished and publishes again.
        """
        self.sync()
        if self.folder:
            os.fsync(self._lock)  # the names of its files
            replace_folder(part_path(self.output), self.output)
        else:
            part_path(self.output).replace(self.output)
        tuning_path(self.output).unlink(missing_ok=True)
        journal_path(self.output).unlink()
        _sync_folder(self.output.parent)
        if self.folder:
            shutil.rmtree(replaced_path(self.output), ignore_errors=True)

    def discard(self) -> None:
        """Remove the unfinished work: the source can't be quantized, so nothing of it is of use."""
        part = part_path(self.output)
        if self.folder:
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)
        tuning_path(self.output).unlink(missing_ok=True)
        journal_path(self.output).unlink(missing_ok=True)


def replace_folder(part: Path, output: Path) -> None:
    """Give a finished folder its name; what had the name keeps `replaced_path` until the caller removes it.

    A folder can't take the place of another in one step: for a moment the old one has another name only.
    """
    old = replaced_path(output)
    if output.exists():
        shutil.rmtree(old, ignore_errors=True)
        output.rename(old)
    part.replace(output)


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
