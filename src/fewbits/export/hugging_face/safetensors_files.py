"""The bytes of safetensors files around their tensors, one file or several with an index.

    header length u64 · header JSON, padded with spaces to a multiple of 8 · data, without gaps

There may be no gaps, and readers view data in place, so wider numbers go first: every array is aligned to its dtype.
Names of the files and of the index are those of transformers. Source: the format's description in the safetensors
repository.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from fewbits.checkpoint.checkpoint import LazyTensor
from fewbits.checkpoint.dtypes import STORAGE
from fewbits.checkpoint.file_tensor import FileTensor
from fewbits.checkpoint.safetensors import read_safetensors_header
from fewbits.export.exporter import Layout, OutputFile, Region

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Larger models are cut into files of at most this many bytes of tensors, which every file system takes.
SHARD_BYTES = 5_000_000_000
_ALIGNMENT = 8


@dataclass(frozen=True)
class Array:
    """One array to be placed.

    Attributes:
        name: in the file.
        dtype: as safetensors calls it.
        shape: in NumPy's order.
        tensor: the container's tensor that it is a part of.
        part: which part.
        content: its bytes, if they are known.
        repeated: see `Region`.
        transposed: its second axis is the rows of the tensor.
        stack: name in the file of the array that it is a slice of, along a first axis; "" for none.
        slice: which one; the slices of a stack are 0, 1, …, all of one shape.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    tensor: str
    part: str
    content: bytes | None = None
    repeated: bool = False
    transposed: bool = False
    stack: str = ""
    slice: int = 0

    @property
    def file_name(self) -> str:
        """Name in the file of what it is, or is a slice of."""
        return self.stack or self.name

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return prod(self.shape) * STORAGE[self.dtype].itemsize


def place_arrays(
    tensors: Sequence[Sequence[Array]], metadata: Mapping[str, str], framework: str = "pt"
) -> Layout:
    """Files for these tensors, each given as its arrays, which stay together in one file.

    Args:
        tensors: in the order in which they fill the files.
        metadata: texts for the first file's header.
        framework: ``format`` in all headers.
    """
    shards = _shards(_with_stacks(tensors), SHARD_BYTES)
    names = [SINGLE]
    if len(shards) > 1:
        names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    files: dict[str, OutputFile] = {}
    parts: dict[str, dict[str, Region]] = {a.tensor: {} for arrays in tensors for a in arrays}
    for file, arrays in zip(names, shards, strict=True):
        about = {"format": framework, **(metadata if file == names[0] else {})}
        files[file], regions = _place_in_file(file, arrays, about)
        for array, region in regions:
            parts[array.tensor][array.part] = region
    if len(shards) > 1:
        files[INDEX] = _index(dict(zip(names, shards, strict=True)))
    return Layout(files, parts)


def _with_stacks(tensors: Sequence[Sequence[Array]]) -> list[list[Array]]:
    """The tensors' arrays, those of tensors that are slices of the same stacks together, slice after slice."""
    groups: dict[str, list[Array]] = {}
    for arrays in tensors:
        groups.setdefault(arrays[0].file_name, []).extend(arrays)
    for arrays in groups.values():
        place = {name: i for i, name in enumerate(dict.fromkeys(a.file_name for a in arrays))}
        arrays.sort(key=lambda a, place=place: (place[a.file_name], a.slice))  # type: ignore[misc]
    return list(groups.values())


def _shards(tensors: Sequence[Sequence[Array]], limit: int) -> list[list[Array]]:
    """Arrays by file: at most `limit` bytes of tensors each, unless one tensor has more."""
    shards: list[list[Array]] = [[]]
    filled = 0
    for arrays in tensors:
        nbytes = sum(array.nbytes for array in arrays)
        if filled and filled + nbytes > limit:
            shards.append([])
            filled = 0
        shards[-1] += arrays
        filled += nbytes
    return shards


def _place_in_file(
    file: str, arrays: Sequence[Array], metadata: Mapping[str, str]
) -> tuple[OutputFile, list[tuple[Array, Region]]]:
    placed: list[tuple[Array, int]] = []
    offset = 0
    for array in sorted(arrays, key=lambda a: -STORAGE[a.dtype].itemsize):  # stable: otherwise as given
        placed.append((array, offset))
        offset += array.nbytes
    entries: dict[str, dict[str, Any]] = {}
    for array, start in placed:
        if array.slice:
            entry = entries[array.stack]
            entry["shape"][0] += 1
        else:
            shape = [1, *array.shape] if array.stack else list(array.shape)
            entry = {"dtype": array.dtype, "shape": shape, "data_offsets": [start, start]}
            entries[array.file_name] = entry
        entry["data_offsets"][1] = start + array.nbytes
    text = json.dumps({"__metadata__": dict(metadata), **entries}, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // _ALIGNMENT) * _ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    regions = [(array, _region(array, len(header) + start, file)) for array, start in placed]
    return OutputFile(header, len(header) + offset), regions


def _region(array: Array, offset: int, file: str) -> Region:
    lines = array.shape[0] if array.transposed else 0
    return Region(offset, array.nbytes, file, array.content, array.repeated, lines)


def _index(shards: Mapping[str, Sequence[Array]]) -> OutputFile:
    weight_map = {array.file_name: file for file, arrays in shards.items() for array in arrays}
    total = sum(array.nbytes for arrays in shards.values() for array in arrays)
    data = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    text = (json.dumps(data, indent=2) + "\n").encode()
    return OutputFile(text, len(text))


def read_placed(
    folder: Path, name: str, arrays: Callable[[Mapping[str, LazyTensor]], Mapping[str, LazyTensor]]
) -> tuple[OutputFile, dict[str, Region]]:
    """Header of a written file, and where each of its arrays lies, by name.

    Args:
        folder: the directory.
        name: of the file.
        arrays: takes stacks apart, as `PackedReader.arrays`.

    Raises:
        CheckpointError: it doesn't read back as a safetensors file.
    """
    path = folder / name
    tensors = read_safetensors_header(path).tensors
    size = path.stat().st_size
    start = min((t.offset for t in tensors.values()), default=size)
    with path.open("rb") as file:
        header = file.read(start)
    found = (t for t in arrays(tensors).values() if isinstance(t, FileTensor))
    return OutputFile(header, size), {t.name: Region(t.offset, t.nbytes, name) for t in found}
