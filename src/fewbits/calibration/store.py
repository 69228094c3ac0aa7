"""Statistics on disk: a folder with one file per linear map, and what they were gathered from."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from fewbits.calibration.kv_statistics import CacheStatistics, ChannelSource
from fewbits.calibration.statistics import Statistics
from fewbits.errors import CalibrationError, OutputError, ResumeError
from fewbits.operating_system import lock_file

# Changes whenever the same input gives other statistics or other files.
FORMAT_VERSION = 5

_DESCRIPTION = "calibration.json"
_COMPLETE = "complete.json"
_LOCK = "lock"
_FOLDS = ".folds.json"
_CACHE = ".kv"
_CACHE_PARTS = ("key_peaks", "value_peaks", "keys", "values")
_CACHE_SOURCES = ("key_source", "value_source")
# An expert's K x K second moment from fewer tokens than K / 4 is mostly noise.
_STARVED = 4


class StatisticsStore:
    """Statistics of every linear map of a model, by the live model's parameter names.

    Of stacked experts [E, N, K], expert e's are under ``NAME#e``.

        FOLDER/calibration.json   what they are gathered from
        FOLDER/NAME.npz           second_moment, held_out [K, K], row_importance [N], tokens, …
        FOLDER/NAME.folds.json    channels of a block (or of the head) that may be rescaled
        FOLDER/NAME.kv            keys and values that a module hands to the cache, in NumPy's .npz
        FOLDER/state/             of a run that isn't finished
        FOLDER/complete.json      written last
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def complete(self) -> bool:
        """Whether the statistics of all maps are there."""
        return (self.folder / _COMPLETE).is_file()

    @property
    def description(self) -> Mapping[str, Any]:
        """What the statistics were gathered from; {} before `begin`.

        Raises:
            ResumeError: the file is damaged.
        """
        try:
            data = json.loads((self.folder / _DESCRIPTION).read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise self._damaged(_DESCRIPTION, error) from error
        return dict(data)

    def names(self) -> list[str]:
        """Of all maps that have statistics, sorted."""
        return sorted(path.name.removesuffix(".npz") for path in self.folder.glob("*.npz"))

    def load(self, name: str) -> Statistics:
        """The statistics of one linear map.

        Raises:
            CalibrationError: there are none under this name.
            ResumeError: the file is damaged.
        """
        with self._open(name) as file:
            return Statistics(
                second_moment=file["second_moment"],
                row_importance=file["row_importance"],
                held_out=file["held_out"],
                tokens=int(file["tokens"]),
                outputs=file.get("outputs"),
                held_out_outputs=file.get("held_out_outputs"),
                sample=file.get("sample"),
                restore=file.get("restore"),
                largest=file.get("largest"),
                peaks={
                    int(name.removeprefix("peaks_")): file[name] for name in file if name.startswith("peaks_")
                },
            )

    def save(self, name: str, statistics: Statistics) -> None:
        """Write the statistics of one map; a reader sees all or nothing of them.

        Raises:
            OutputError: they can't be written.
        """
        with _written(self.folder / f"{name}.npz") as file:
            arrays: dict[str, Any] = {
                "second_moment": statistics.second_moment,
                "held_out": statistics.held_out,
                "row_importance": statistics.row_importance,
                "tokens": np.int64(statistics.tokens),
                "outputs": statistics.outputs,
                "held_out_outputs": statistics.held_out_outputs,
                "sample": statistics.sample,
                "restore": statistics.restore,
                "largest": statistics.largest,
                **{f"peaks_{size}": peaks for size, peaks in statistics.peaks.items()},
            }
            np.savez(file, **{name: array for name, array in arrays.items() if array is not None})

    def save_folds(self, name: str, folds: Iterable[Mapping[str, Any]]) -> None:
        """Write which channels of a part of the model may be rescaled.

        Raises:
            OutputError: they can't be written.
        """
        with _written(self.folder / f"{name}{_FOLDS}") as file:
            file.write(json.dumps(list(folds)).encode())

    def folds(self, name: str) -> list[dict[str, Any]]:
        """What `save_folds` wrote under a name; [] if there is nothing.

        Raises:
            ResumeError: the file is damaged.
        """
        try:
            return list(json.loads((self.folder / f"{name}{_FOLDS}").read_bytes()))
        except FileNotFoundError:
            return []
        except ValueError as error:
            raise self._damaged(f"{name}{_FOLDS}", error) from error

    def folded(self) -> list[str]:
        """The names that `save_folds` wrote under, sorted."""
        return sorted(path.name.removesuffix(_FOLDS) for path in self.folder.glob(f"*{_FOLDS}"))

    def save_cache(self, name: str, found: CacheStatistics) -> None:
        """Write what is known of the keys and values that a module hands to the cache.

        Raises:
            OutputError: they can't be written.
        """
        arrays: dict[str, Any] = {part: getattr(found, part) for part in _CACHE_PARTS}
        for part in _CACHE_SOURCES:
            if (source := getattr(found, part)) is not None:
                arrays |= {part: np.array(source.parameter), f"{part}_rows": source.rows}
        with _written(self.folder / f"{name}{_CACHE}") as file:
            np.savez(file, **arrays)

    def load_cache(self, name: str) -> CacheStatistics:
        """What `save_cache` wrote under a name.

        Raises:
            CalibrationError: there is nothing under this name.
            ResumeError: the file is damaged.
        """
        with self._open(name, _CACHE) as file:
            sources = [
                ChannelSource(str(file[part]), file[f"{part}_rows"]) if part in file else None
                for part in _CACHE_SOURCES
            ]
            return CacheStatistics(*(file[part] for part in _CACHE_PARTS), *sources)

    def caches(self) -> list[str]:
        """The names that `save_cache` wrote under, sorted."""
        return sorted(path.name.removesuffix(_CACHE) for path in self.folder.glob(f"*{_CACHE}"))

    def starved(self) -> dict[str, int]:
        """Experts that saw fewer than K / 4 tokens, and how many; their statistics lean on the others'."""
        result = {}
        for name in self.names():
            if "#" in name:
                with self._open(name) as file:
                    tokens, width = int(file["tokens"]), len(file["second_moment"])
                if is_starved(tokens, width):
                    result[name] = tokens
        return result

    def begin(self, description: Mapping[str, Any]) -> None:
        """Start gathering, or go on with what the same calibration left.

        Raises:
            ResumeError: the folder holds statistics of something else.
            OutputError: the folder can't be written.
        """
        _make(self.folder)
        found = self.description
        if found and found != dict(description):
            raise ResumeError(
                f"{self.folder} holds statistics of another calibration",
                found=json.dumps(found, sort_keys=True),
                allowed=json.dumps(dict(description), sort_keys=True),
                action="Give another folder, or delete this one",
            )
        with _written(self.folder / _DESCRIPTION) as file:
            file.write(json.dumps(dict(description), indent=1, sort_keys=True).encode())

    @contextmanager
    def alone(self, wait: Callable[[], None]) -> Iterator[None]:
        """Nobody else gathers into this folder meanwhile; `wait` is called before somebody else is waited for.

        Raises:
            OutputError: the folder can't be written.
        """
        _make(self.folder)
        try:
            descriptor = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise OutputError(f"can't write {self.folder / _LOCK}", found=error.strerror) from error
        try:
            try:
                lock_file(descriptor)
            except BlockingIOError:
                wait()
                lock_file(descriptor, wait=True)
            yield
        finally:
            os.close(descriptor)

    def finish(self) -> None:
        """Everything is there: drop the state and say so."""
        with _written(self.folder / _COMPLETE) as file:
            file.write(json.dumps({"maps": len(self.names())}).encode())
        shutil.rmtree(self.folder / "state", ignore_errors=True)

    @contextmanager
    def _open(self, name: str, ending: str = ".npz") -> Iterator[Any]:
        path = self.folder / f"{name}{ending}"
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                yield arrays
        except FileNotFoundError as error:
            raise CalibrationError(
                f"there are no statistics of {name}", found=f"{len(self.names())} others in {self.folder}"
            ) from error
        except (KeyError, ValueError, OSError, EOFError, BadZipFile) as error:
            raise self._damaged(path.name, error) from error

    def _damaged(self, file: str, error: Exception) -> ResumeError:
        return ResumeError(
            f"{self.folder / file} is damaged", found=str(error), action="Delete the folder and start again"
        )


def is_starved(tokens: int, columns: int) -> bool:
    """Whether an expert saw too few tokens for a second moment of its own."""
    return tokens * _STARVED < columns


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"can't make the folder {folder}", found=error.strerror) from error


class _written:  # noqa: N801 -- used like a function
    """A binary file that appears under its name when it is whole."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Any:
        try:
            descriptor, name = tempfile.mkstemp(dir=self._path.parent, prefix=".", suffix=".part")
        except OSError as error:
            raise self._failed(error) from error
        self._temporary = Path(name)
        self._file = os.fdopen(descriptor, "wb")
        return self._file

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._file.close()
        if kind is None:
            self._temporary.replace(self._path)
            return
        self._temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> OutputError:
        return OutputError(f"can't write {self._path}", found=error.strerror or str(error))
