"""Reading safetensors files, one at a time.

    header length u64 · header JSON, padded with spaces · data, without gaps
    header: {"name": {"dtype": "BF16", "shape": [N, K], "data_offsets": [begin, end]}, "__metadata__": {…}}

Offsets count from the end of the header. Source: the format's description in the safetensors repository.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from fewbits.checkpoint.byte_range import file_size, read_bytes
from fewbits.checkpoint.dtypes import STORAGE
from fewbits.checkpoint.file_tensor import FileTensor
from fewbits.errors import CheckpointError

DAMAGED = "The file is damaged or incomplete: download or copy it again, and compare its checksum."

LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library
_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True)
class SafetensorsHeader:
    """What a safetensors file says before its data.

    Attributes:
        tensors: by name, in the order of their data.
        metadata: the free text under ``__metadata__``.
    """

    tensors: dict[str, FileTensor]
    metadata: dict[str, str]


def read_safetensors_header(path: Path) -> SafetensorsHeader:
    """Parse a file's header and check it against the file.

    Raises:
        CheckpointError: header too long, not JSON, or naming a tensor twice; unknown dtype; offsets that
            don't fit the shape, overlap, leave gaps or run past the end of the file.
    """
    size = file_size(path)
    entries, data_start = _read_json(path, size)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _wrong(path, "__metadata__", found=type(metadata).__name__, allowed="an object of strings")
    tensors = [_tensor(path, name, entry, data_start) for name, entry in entries.items()]
    tensors.sort(key=lambda t: (t.offset, t.nbytes))
    _check_regions(path, size, data_start, tensors)
    return SafetensorsHeader({t.name: t for t in tensors}, metadata)


def _read_json(path: Path, size: int) -> tuple[dict[str, Any], int]:
    """The header's entries and where the data starts."""
    if size < 8:
        raise _wrong(path, "the header", found=f"a file of {size} bytes", allowed="at least 8")
    length = int.from_bytes(read_bytes(path, 0, 8).tobytes(), "little")
    if length > min(size - 8, LONGEST_HEADER):
        raise _wrong(
            path,
            "the header's length",
            found=f"{length} bytes",
            allowed=f"at most {min(size - 8, LONGEST_HEADER)} (the file has {size})",
        )
    text = read_bytes(path, 8, length).tobytes()
    try:
        entries = json.loads(text, object_pairs_hook=_object)
    except _TwiceError as error:
        raise _wrong(path, f"the header names {error} twice", found="two entries of that name") from None
    except (ValueError, RecursionError) as error:  # bad UTF-8 and bad JSON are both ValueErrors
        raise _wrong(path, "the header is not JSON", found=str(error)[:200]) from None
    if not isinstance(entries, dict):
        raise _wrong(path, "the header", found=type(entries).__name__, allowed="a JSON object")
    return entries, 8 + length


class _TwiceError(Exception):
    """A key occurs twice in one JSON object."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        raise _TwiceError(next(k for k, _ in pairs if k in seen or seen.add(k)))  # type: ignore[func-returns-value]
    return found


def _tensor(path: Path, name: str, entry: Any, data_start: int) -> FileTensor:
    if not isinstance(entry, dict) or not entry.keys() >= _ENTRY_KEYS:
        raise _wrong(
            path, f"the entry of {name}", found=repr(entry)[:100], allowed=", ".join(sorted(_ENTRY_KEYS))
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in STORAGE:
        raise CheckpointError(
            f"{path}: the tensor {name} has an unknown dtype",
            found=repr(dtype)[:40],
            allowed=", ".join(STORAGE),
            action="Start from the original model in BF16, F16 or F32.",
        )
    if not _are_counts(shape) or len(shape) > 8 or prod(max(d, 1) for d in shape) >= 1 << 60:
        raise _wrong(path, f"the shape of {name}", found=repr(shape)[:100], allowed="up to 8 whole numbers")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise _wrong(path, f"the data_offsets of {name}", found=repr(offsets)[:100], allowed="[begin, end]")
    begin, end = offsets
    nbytes = prod(shape) * STORAGE[dtype].itemsize
    if end - begin != nbytes:
        raise _wrong(
            path,
            f"the data_offsets of {name} don't fit its shape {shape}",
            found=f"{end - begin} bytes ({begin} to {end})",
            allowed=f"{nbytes} bytes of {dtype}",
        )
    return FileTensor(name, tuple(shape), dtype, path, data_start + begin, nbytes)


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and v >= 0 for v in value)


def _check_regions(path: Path, size: int, data_start: int, tensors: list[FileTensor]) -> None:
    """Every byte of the data belongs to exactly one tensor."""
    end = data_start
    before = "the header"
    for tensor in tensors:
        if tensor.offset < end:
            raise _wrong(
                path,
                f"the tensors {before} and {tensor.name} overlap",
                found=f"{tensor.name} begins at {tensor.offset - data_start}",
                allowed=f"{end - data_start}, where {before} ends",
            )
        if tensor.offset > end:
            raise _wrong(
                path,
                f"there is a hole between {before} and {tensor.name}",
                found=f"{tensor.offset - end} bytes that belong to no tensor",
                allowed="none",
            )
        end, before = tensor.offset + tensor.nbytes, tensor.name
    if end > size:
        first = next(t for t in tensors if t.offset + t.nbytes > size)
        raise CheckpointError(
            f"{path} is shorter than its header says: the tensor {first.name} runs past the end of the file",
            found=f"{size} bytes",
            allowed=f"{end}",
            action=DAMAGED,
        )
    if end < size:
        raise _wrong(
            path, "there is more data than the header names", found=f"{size} bytes", allowed=f"{end}"
        )


def _wrong(path: Path, what: str, *, found: object, allowed: object = None) -> CheckpointError:
    return CheckpointError(f"{path}: {what}", found=found, allowed=allowed, action=DAMAGED)
