"""Text from a dataset of the Hugging Face hub, through the package datasets, which knows cache and tokens.

    hub:OWNER/NAME[@REVISION][:CONFIG[:SPLIT[:COLUMN]]]     parts may be left empty
    FOLDER                                                  a dataset on disk, as that package reads it

Rows are streamed, so that of a large dataset no more is downloaded than what is read of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeAlias

from fewbits.errors import CalibrationError, MissingExtraError

HUB = "hub:"
# Columns taken where none is named, the first that there is; otherwise the only one with text.
_COLUMNS = ("messages", "text")
_SPLIT = "train"

# ``{"text": …}`` or ``{"messages": [{"role": …, "content": …}, …]}``
Record: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class DatasetName:
    """What to read; empty parts are found out.

    Attributes:
        path: hub id or folder.
        revision: of a hub id.
        config, split, column: as the dataset calls them.
    """

    path: str
    revision: str = ""
    config: str = ""
    split: str = ""
    column: str = ""

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.path}{revision}:{self.config}:{self.split}:{self.column}".rstrip(":")


def parse_dataset(text: str) -> DatasetName:
    """The dataset that a text beginning with ``hub:`` names.

    Raises:
        CalibrationError: no name, or more parts than there are.
    """
    path, *rest = text.removeprefix(HUB).split(":")
    name, _, revision = path.partition("@")
    if not name or len(rest) > 3:
        raise CalibrationError(
            "the dataset's name can't be read", found=repr(text),
            allowed="hub:OWNER/NAME[@REVISION][:CONFIG[:SPLIT[:COLUMN]]]",
        )  # fmt: skip
    return DatasetName(name, revision, *rest)


def read_dataset(name: DatasetName, characters: int) -> tuple[DatasetName, list[Record]]:
    """The first rows of a dataset, until they have so many characters, and the name with all that was found out.

    Raises:
        MissingExtraError: the package datasets isn't installed.
        CalibrationError: the dataset can't be read, or has no such part or no text.
    """
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("datasets", "datasets", "Calibrating on a dataset") from None
    refused = (OSError, ValueError, KeyError, RuntimeError, datasets.exceptions.DatasetsError)
    datasets.disable_progress_bars()  # ours is being drawn
    try:
        found = datasets.load_dataset(
            str(Path(name.path).resolve()) if Path(name.path).is_dir() else name.path,
            name.config or None, revision=name.revision or None,
            # What is cached can be streamed from the hub only.
            streaming=Path(name.path).is_dir() or not datasets.config.HF_HUB_OFFLINE,
        )  # fmt: skip
        split = _pick(name, "split", list(found), (_SPLIT, next(iter(found), "")))
        rows = iter(found[split])
        first = list(islice(rows, 1))
        column = _column(name, first)
        taken = list(_until(characters, (row[column] for row in chain(first, rows))))
    except refused as error:
        raise CalibrationError(
            f"the dataset {name} can't be read", found=(str(error).strip() or type(error).__name__).split("\n")[0],
            action="Its parts are hub:OWNER/NAME[@REVISION][:CONFIG[:SPLIT[:COLUMN]]]",
        ) from error  # fmt: skip
    finally:
        datasets.enable_progress_bars()
    key = "text" if isinstance(taken[0], str) else "messages"
    return DatasetName(name.path, name.revision, name.config, split, column), [{key: v} for v in taken]


def _pick(name: DatasetName, part: str, there: list[str], preferred: Iterable[str]) -> str:
    """The part that is named, or else the first of `preferred` that is there."""
    asked: str = getattr(name, part)
    chosen = [n for n in ([asked] if asked else preferred) if n in there]
    if not chosen:
        raise CalibrationError(
            f"the dataset {name} has no such {part}" if asked else f"which {part} of the dataset {name}?",
            found=asked or None, allowed=", ".join(there) or "none",
            action="" if asked else f"Name the {part} in hub:OWNER/NAME:CONFIG:SPLIT:COLUMN",
        )  # fmt: skip
    return chosen[0]


def _column(name: DatasetName, first: list[Mapping[str, Any]]) -> str:
    if not first:
        raise CalibrationError(f"the dataset {name} is empty")
    (row,) = first
    usable = [column for column, value in row.items() if _is_text(value)]
    only = [c for c in usable if len(usable) == 1]
    column = _pick(name, "column", list(row), [*(c for c in _COLUMNS if c in usable), *only])
    if column not in usable:
        raise CalibrationError(
            f"the column {column} of the dataset {name} is no text", found=repr(row[column])[:60],
            allowed=f"text or a list of messages, as in: {', '.join(usable)}" if usable else "text",
        )  # fmt: skip
    return column


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(m, dict) and {"role", "content"} <= set(m) for m in value)
    )


def _until(characters: int, values: Iterable[Any]) -> Iterator[Any]:
    """Those values that hold text, until it is enough."""
    for value in values:
        if _is_text(value) and (length := _length(value)):
            yield value
            characters -= length
            if characters <= 0:
                return


def _length(value: str | list[Mapping[str, Any]]) -> int:
    return len(value.strip()) if isinstance(value, str) else sum(len(str(m["content"])) for m in value)
