"""Reading GGUF files, versions 2 and 3, little-endian, whole or split into shards.

    magic "GGUF" · version u32 · tensor count u64 · value count u64
    values:   key string · type u32 · value
              strings are length u64 · bytes, arrays are type u32 · count u64 · elements
    tensors:  name string · dimensions u32 · size of each u64, innermost first · type u32 · offset u64
    padding to a multiple of general.alignment, then the tensors' data; offsets count from here

Source: the GGUF specification (ggml, docs/gguf.md).
"""

from __future__ import annotations

import mmap
import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from fewbits.checkpoint.byte_range import file_size, unreadable
from fewbits.checkpoint.checkpoint import Checkpoint
from fewbits.checkpoint.file_tensor import FileTensor
from fewbits.checkpoint.gguf_constants import (
    DEFAULT_ALIGNMENT,
    GGML_TYPES,
    GGML_TYPES_BY_NUMBER,
    MAGIC,
    MAX_DIMENSIONS,
    READ_VERSIONS,
    RETIRED_TYPES,
    GgmlType,
    ValueType,
)
from fewbits.checkpoint.gguf_cursor import DAMAGED, Cursor
from fewbits.errors import CheckpointError

_SMALLEST_VALUE = 8 + 4 + 1  # empty key, type, one byte
_SMALLEST_TENSOR = 8 + 4 + 4 + 8  # empty name, no dimensions, type, offset
_SHARD_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says before its data.

    Attributes:
        version: 2 or 3.
        metadata: values by key, in file order; arrays are `GgufArray`.
        metadata_types: by key, the value's type and, for arrays, its elements' type.
        tensors: in the order of the file's table.
        alignment: bytes; every tensor starts at a multiple of it from `data_start`.
        data_start: offset of the tensors' data.
    """

    version: int
    metadata: dict[str, Any]
    metadata_types: dict[str, tuple[int, int | None]]
    tensors: tuple[FileTensor, ...]
    alignment: int
    data_start: int


def open_gguf(path: Path) -> Checkpoint:
    """The model in a GGUF file, or in all shards that belong to it.

    Raises:
        CheckpointError: not a GGUF file that can be read, or a shard is missing.
    """
    header = read_gguf_header(path)
    headers = {path: header}
    if int_value(header, "split.count", 1) > 1:
        headers = _shards(path, header)
    tensors: dict[str, FileTensor] = {}
    for file, shard in headers.items():
        for tensor in shard.tensors:
            if tensor.name in tensors:
                raise CheckpointError(
                    f"{file}: the tensor {tensor.name} occurs twice",
                    found=f"also in {tensors[tensor.name].path.name}",
                    action="The shards don't belong together; download them again.",
                )
            tensors[tensor.name] = tensor
    first = next(iter(headers.values()))
    kept = [key for key in first.metadata if not key.startswith("split.")]
    return Checkpoint(
        path=next(iter(headers)),
        container="gguf",
        tensors=tensors,
        files=tuple(headers),
        metadata={key: first.metadata[key] for key in kept},
        metadata_types={key: first.metadata_types[key] for key in kept},
        warnings=_quantized_warning(path, list(tensors.values())),
    )


def read_gguf_header(path: Path) -> GgufHeader:
    """Parse everything before the tensors' data, and check it against the file.

    Raises:
        CheckpointError: wrong magic, version or byte order; counts, lengths, types, dimensions or offsets
            that can't be true of this file; names that occur twice; tensors that overlap.
    """
    size = file_size(path)
    if size < 24:
        raise CheckpointError(
            f"{path} is too short for a GGUF file",
            found=f"{size} bytes",
            allowed="at least 24",
            action=DAMAGED,
        )
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise unreadable(path, error) from error
    cursor = Cursor(data, path)
    version = _version(cursor)
    tensor_count = cursor.count(_SMALLEST_TENSOR, "the tensor count")
    value_count = cursor.count(_SMALLEST_VALUE, "the count of metadata values")
    metadata, types = _metadata(cursor, value_count)
    alignment = _alignment(cursor, metadata, types)
    table: dict[str, tuple[tuple[int, ...], GgmlType, int]] = {}
    for _ in range(tensor_count):
        name, shape, kind, offset = _tensor(cursor, alignment)
        if name in table:
            raise cursor.fail(f"the tensor {name} occurs twice", found="two entries of that name")
        table[name] = (shape, kind, offset)
    data_start = -(-cursor.position // alignment) * alignment
    tensors = tuple(
        FileTensor(name, shape, kind.name, path, data_start + offset, prod(shape) // kind.block * kind.nbytes)
        for name, (shape, kind, offset) in table.items()
    )
    _check_regions(path, size, data_start, tensors)
    return GgufHeader(version, metadata, types, tensors, alignment, data_start)


def int_value(header: GgufHeader, key: str, default: int) -> int:
    """An integer of the metadata, or the default where it is absent or something else."""
    value = header.metadata.get(key, default)
    return value if isinstance(value, int) else default


def _version(cursor: Cursor) -> int:
    start = cursor.skip(4, "the magic")
    magic = cursor.data[start : start + 4]
    if magic != MAGIC:
        raise cursor.fail(
            "not a GGUF file",
            found=f"it begins with {magic!r}",
            allowed=repr(MAGIC),
            action="Check the path.",
        )
    version = int(cursor.number("I", "the version"))
    if version in READ_VERSIONS:
        return version
    swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
    if swapped in READ_VERSIONS:
        raise cursor.fail(
            "a big-endian GGUF file",
            found=f"version {swapped} in big-endian order",
            allowed="little-endian",
            action="Convert it with the gguf package: gguf-convert-endian FILE little.",
        )
    raise cursor.fail(
        "GGUF version",
        found=version,
        allowed=" or ".join(map(str, READ_VERSIONS)),
        action="Make the file again with a current llama.cpp, or download a current one.",
    )


def _metadata(cursor: Cursor, count: int) -> tuple[dict[str, Any], dict[str, tuple[int, int | None]]]:
    values: dict[str, Any] = {}
    types: dict[str, tuple[int, int | None]] = {}
    for _ in range(count):
        key = cursor.name("a metadata key")
        if key in values:
            raise cursor.fail(f"the metadata key {key} occurs twice", found="two values")
        kind = cursor.value_type(key)
        value = cursor.value(kind, key)
        values[key] = value
        types[key] = (int(kind), int(value.element_type) if kind is ValueType.ARRAY else None)
    return values, types


def _alignment(cursor: Cursor, metadata: dict[str, Any], types: dict[str, tuple[int, int | None]]) -> int:
    if "general.alignment" not in metadata:
        return DEFAULT_ALIGNMENT
    alignment, (kind, _) = metadata["general.alignment"], types["general.alignment"]
    if kind != ValueType.UINT32 or not alignment or alignment & (alignment - 1):
        raise cursor.fail(
            "general.alignment is wrong",
            found=f"{alignment!r} ({ValueType(kind).name.lower()})",
            allowed="a power of two, as uint32",
        )
    return int(alignment)


def _tensor(cursor: Cursor, alignment: int) -> tuple[str, tuple[int, ...], GgmlType, int]:
    name = cursor.name("the name of a tensor")
    dimensions = cursor.number("I", f"the dimensions of {name}")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise cursor.fail(
            f"the number of dimensions of {name}", found=dimensions, allowed=f"1 to {MAX_DIMENSIONS}"
        )
    shape = tuple(int(cursor.number("Q", f"the shape of {name}")) for _ in range(dimensions))[::-1]
    kind = _tensor_type(cursor, name)
    if 0 in shape or prod(shape) >= 1 << 60:
        raise cursor.fail(f"the shape of {name}", found=list(shape), allowed="1 to 2**60 numbers in all")
    if shape[-1] % kind.block:
        raise cursor.fail(
            f"the rows of {name} don't fit its type {kind.name}",
            found=f"rows of {shape[-1]}",
            allowed=f"a multiple of {kind.block}",
        )
    offset = int(cursor.number("Q", f"the offset of {name}"))
    if offset % alignment:
        raise cursor.fail(
            f"{name} is not aligned", found=f"offset {offset}", allowed=f"a multiple of {alignment}"
        )
    return name, shape, kind, offset


def _tensor_type(cursor: Cursor, name: str) -> GgmlType:
    number = cursor.number("I", f"the type of {name}")
    kind = GGML_TYPES_BY_NUMBER.get(number)
    if kind is None:
        retired = RETIRED_TYPES.get(number)
        raise cursor.fail(
            f"the tensor {name} has an unknown type",
            found=f"{number} ({retired}, which ggml has given up)" if retired else number,
            allowed=", ".join(f"{t.number} ({t.name})" for t in GGML_TYPES.values()),
            action="Make the file again from the original model."
            if retired
            else "Take the original model, or a newer fewbits that knows this type.",
        )
    return kind


def _check_regions(path: Path, size: int, data_start: int, tensors: tuple[FileTensor, ...]) -> None:
    ordered = sorted(tensors, key=lambda t: (t.offset, t.nbytes))
    for before, after in pairwise(ordered):
        end = before.offset + before.nbytes
        if end > after.offset:
            raise CheckpointError(
                f"{path}: the tensors {before.name} and {after.name} overlap",
                found=f"{after.name} starts at {after.offset}, {before.name} ends at {end}",
                action=DAMAGED,
            )
    if ordered and ordered[-1].offset + ordered[-1].nbytes > size:
        last = ordered[-1]
        raise CheckpointError(
            f"{path} is shorter than its header says: the tensor {last.name} runs past the end of the file",
            found=f"{size} bytes",
            allowed=f"at least {last.offset + last.nbytes} (data from {data_start})",
            action=DAMAGED,
        )


def _shards(path: Path, header: GgufHeader) -> dict[Path, GgufHeader]:
    """Headers of all shards of a split model, in order."""
    count = int_value(header, "split.count", 1)
    match = _SHARD_NAME.fullmatch(path.name)
    if not match or int(match[3]) != count:
        raise CheckpointError(
            f"{path} is one shard of {count}, but its name doesn't say where the others are",
            found=path.name,
            allowed=f"NAME-00001-of-{count:05}.gguf",
            action="Give the shards their names back, or join them with llama-gguf-split --merge.",
        )
    paths = [path.with_name(f"{match[1]}-{i:05}-of-{match[3]}.gguf") for i in range(1, count + 1)]
    if missing := [p.name for p in paths if not p.exists()]:
        raise CheckpointError(
            f"{path}: {len(missing)} of the model's {count} shards are missing",
            found=f"no {', no '.join(missing[:8])}",
            action="Download the missing files into the same folder.",
        )
    headers = {p: header if p == path else read_gguf_header(p) for p in paths}
    for number, (file, shard) in enumerate(headers.items()):
        found = int_value(shard, "split.no", -1), int_value(shard, "split.count", -1)
        if found != (number, count):
            raise CheckpointError(
                f"{file} is not the shard that its name says",
                found=f"split.no {found[0]}, split.count {found[1]}",
                allowed=f"split.no {number}, split.count {count}",
                action="Download the shards again.",
            )
    return headers


def _quantized_warning(path: Path, tensors: list[FileTensor]) -> tuple[str, ...]:
    counts = Counter(t.dtype for t in tensors if GGML_TYPES[t.dtype].quantized)
    if not counts:
        return ()
    types = ", ".join(f"{name} ({count} tensors)" for name, count in counts.most_common())
    return (
        f"{path.name} is already quantized: {types}. What that lost stays lost, and quantizing again adds "
        "to it, unseen when the result is compared with this file. Start from the original model if you can.",
    )
