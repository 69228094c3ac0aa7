"""The bytes of a GGUF file around its tensors. Knows no model and no number format.

Layout, version 3, little-endian (ggml, docs/gguf.md):

    "GGUF" | version u32 | tensor count u64 | key-value count u64
    key-value pairs:  key string | value type u32 | value
    tensor table:     name string | dimensions u32 | sizes u64, innermost first | type u32 | offset u64
    zeros up to a multiple of the alignment
    tensors, each at a multiple of the alignment; offsets count from the first

    string = length u64 | UTF-8;   array = item type u32 | count u64 | items
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from fewbits.checkpoint.gguf import read_gguf_header
from fewbits.checkpoint.gguf_constants import (
    GGML_TYPES,
    MAGIC,
    MAX_DIMENSIONS,
    SCALAR_CODES,
    GgmlType,
    ValueType,
)
from fewbits.checkpoint.gguf_cursor import GgufArray
from fewbits.errors import CheckpointError, FormatError, VerificationError
from fewbits.export.exporter import ITSELF, WHOLE, Layout, OutputFile, Region

VERSION = 3


@dataclass(frozen=True)
class Typed:
    """A metadata value whose GGUF type isn't the natural one.

    Attributes:
        value: a scalar, a string, or a list of them; arrays from a GGUF file as they were read.
        type: the type in the file.
        item: type of the items, for arrays.
    """

    value: Any
    type: ValueType
    item: ValueType | None = None


@dataclass(frozen=True)
class TensorEntry:
    """A row of the tensor table.

    Attributes:
        name: of the tensor.
        shape: in NumPy's order; the file lists it in reverse.
        type: how its numbers lie.
        offset: from the first tensor's start, in bytes.
        nbytes: of the tensor without padding.
    """

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    offset: int
    nbytes: int


def plain(value: Any) -> Any:
    """A metadata value without its type."""
    if not isinstance(value, Typed):
        return value
    return list(value.value) if value.type is ValueType.ARRAY else value.value


def natural_type(value: Any) -> Typed:
    """The type a plain Python value gets: int UINT32 (INT32 in arrays), float FLOAT32, bool, str, list.

    Integers that don't fit get the next wider type.

    Raises:
        FormatError: GGUF has no such type.
    """
    if isinstance(value, Typed):
        return value
    if isinstance(value, GgufArray):
        return Typed(value, ValueType.ARRAY, value.element_type)
    if isinstance(value, np.generic):
        value = value.item()
    for python_type, kind in ((bool, ValueType.BOOL), (str, ValueType.STRING), (float, ValueType.FLOAT32)):
        if isinstance(value, python_type):
            return Typed(value, kind)
    if isinstance(value, int):
        return Typed(value, _integer_type([value], (ValueType.UINT32, ValueType.INT32)))
    if isinstance(value, (list, tuple)):
        return Typed(list(value), ValueType.ARRAY, _item_type(value))
    raise FormatError("GGUF metadata holds numbers, strings and lists", found=f"{type(value).__name__}")


def _integer_type(values: Sequence[int], preferred: tuple[ValueType, ...]) -> ValueType:
    bounds = {
        ValueType.UINT32: (0, 2**32),
        ValueType.INT32: (-(2**31), 2**31),
        ValueType.INT64: (-(2**63), 2**63),
        ValueType.UINT64: (0, 2**64),
    }
    for kind in (*preferred, ValueType.INT64, ValueType.UINT64):
        low, high = bounds[kind]
        if all(low <= v < high for v in values):
            return kind
    raise FormatError("GGUF metadata holds integers of at most 64 bits", found=max(values, key=abs))


def _item_type(values: Sequence[Any]) -> ValueType:
    """Type of a list's items: floats where any is a float."""
    if not values:
        return ValueType.INT32
    kinds = {natural_type(v).type for v in values}
    if ValueType.ARRAY in kinds:
        raise FormatError("an item of a GGUF array is a number or a string", found="a list in a list")
    if ValueType.FLOAT32 in kinds and kinds <= {ValueType.FLOAT32, ValueType.UINT32, ValueType.INT32}:
        return ValueType.FLOAT32
    if kinds <= {ValueType.UINT32, ValueType.INT32, ValueType.INT64, ValueType.UINT64}:
        return _integer_type(values, (ValueType.INT32,))
    if len(kinds) > 1:
        raise FormatError("the items of a GGUF array have one type", found=", ".join(k.name for k in kinds))
    return kinds.pop()


def tensor_bytes(type_name: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor in one of ggml's types.

    Raises:
        FormatError: no such type, or one whose block doesn't divide the rows.
    """
    if type_name not in GGML_TYPES:
        raise FormatError("not a tensor type of GGUF", found=type_name, allowed=", ".join(GGML_TYPES))
    ggml_type = GGML_TYPES[type_name]
    columns = shape[-1] if shape else 1
    if columns % ggml_type.block:
        raise FormatError(
            f"{type_name} holds rows whose length is a multiple of {ggml_type.block}",
            found=f"rows of {columns}",
        )
    return prod(shape[:-1]) * ggml_type.row_bytes(columns)


def padded(size: int, alignment: int) -> int:
    """`size` rounded up to a multiple of `alignment`."""
    return -(-size // alignment) * alignment


def place_tensors(
    tensors: Sequence[tuple[str, tuple[int, ...], str]], alignment: int
) -> tuple[list[TensorEntry], int]:
    """Places for tensors (name, shape, type name), each at a multiple of the alignment; and their size."""
    entries: list[TensorEntry] = []
    offset = 0
    for name, shape, type_name in tensors:
        nbytes = tensor_bytes(type_name, shape)
        entries.append(TensorEntry(name, shape, GGML_TYPES[type_name], offset, nbytes))
        offset += padded(nbytes, alignment)
    return entries, offset


def encode_header(metadata: Mapping[str, Any], entries: Sequence[TensorEntry], alignment: int) -> bytes:
    """Everything before the first tensor, padding included."""
    out = [MAGIC, struct.pack("<IQQ", VERSION, len(entries), len(metadata))]
    for key, value in metadata.items():
        typed = natural_type(value)
        out += [_string(key), struct.pack("<I", typed.type), _value(typed)]
    for entry in entries:
        if len(entry.shape) > MAX_DIMENSIONS:
            raise FormatError(
                f"GGUF holds tensors of at most {MAX_DIMENSIONS} dimensions",
                found=f"{entry.name} of shape {list(entry.shape)}",
            )
        sizes = entry.shape[::-1] or (1,)
        out += [_string(entry.name), struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)]
        out.append(struct.pack("<IQ", entry.type.number, entry.offset))
    header = b"".join(out)
    return header.ljust(padded(len(header), alignment), b"\0")


def _string(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def _value(typed: Typed) -> bytes:
    if typed.type is ValueType.STRING:
        return _string(typed.value)
    if typed.type is not ValueType.ARRAY:
        return struct.pack("<" + SCALAR_CODES[typed.type], typed.value)
    assert typed.item is not None
    head = struct.pack("<IQ", typed.item, len(typed.value))
    if isinstance(typed.value, GgufArray):
        return head + typed.value.raw
    if typed.item in SCALAR_CODES:
        return head + struct.pack(f"<{len(typed.value)}{SCALAR_CODES[typed.item]}", *typed.value)
    return head + b"".join(map(_string, typed.value))


def read_layout(path: Path) -> Layout:
    """Parse a written file's header again.

    Raises:
        VerificationError: it doesn't read back as a GGUF file.
    """
    try:
        header = read_gguf_header(path)
    except CheckpointError as error:
        raise VerificationError(f"{path} doesn't read back as a GGUF file", found=str(error)) from error
    regions = {t.name: {WHOLE: Region(t.offset, t.nbytes)} for t in header.tensors}
    end = max(
        (padded(t.offset + t.nbytes, header.alignment) for t in header.tensors), default=header.data_start
    )
    with path.open("rb") as file:
        return Layout({ITSELF: OutputFile(file.read(header.data_start), end)}, regions)
