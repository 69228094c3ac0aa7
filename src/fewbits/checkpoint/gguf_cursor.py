"""Reading the fields of a GGUF header one after another, never past the end of the file.

Every count and length in the file is compared with the bytes that are left before anything is allocated,
so a header that lies costs an error message and nothing else.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from fewbits.checkpoint.gguf_constants import SCALAR_CODES, ValueType
from fewbits.errors import CheckpointError

DAMAGED = "The file is damaged or incomplete: download or copy it again, and compare its checksum."

_STRINGS_AT_ONCE = 4096
_LONGEST_NAME = 65535  # bytes; the specification's limit for keys


class GgufArray(Sequence[Any]):
    """An array of a GGUF file's metadata, decoded when it is used.

    Attributes:
        element_type: a scalar type or STRING.
        raw: the elements as they lie in the file, to be written again unchanged. Strings that aren't
            UTF-8 are decoded with surrogates ("surrogateescape"), so that nothing is lost.
    """

    def __init__(
        self, element_type: ValueType, raw: bytes, count: int, offsets: npt.NDArray[np.int64] | None = None
    ) -> None:
        self.element_type = element_type
        self.raw = raw
        self._count = count
        self._offsets = offsets  # int64 [count + 1], of strings alone

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        if index < 0:
            index += self._count
        if not 0 <= index < self._count:
            raise IndexError(index)
        if self._offsets is not None:
            return self._string(int(self._offsets[index]), int(self._offsets[index + 1]))
        code = "<" + SCALAR_CODES[self.element_type]
        return struct.unpack_from(code, self.raw, index * struct.calcsize(code))[0]

    def __iter__(self) -> Iterator[Any]:
        if self._offsets is None:
            return iter(self.tolist())
        bounds = self._offsets.tolist()
        return (self._string(a, b) for a, b in pairwise(bounds))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, GgufArray):
            return (self.element_type, self.raw) == (other.element_type, other.raw)
        return isinstance(other, list | tuple) and self.tolist() == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{self._count} values of type {self.element_type.name}>"

    def tolist(self) -> list[Any]:
        """All elements as Python values."""
        if self._offsets is not None:
            return list(self)
        return list(struct.unpack(f"<{self._count}{SCALAR_CODES[self.element_type]}", self.raw))

    def _string(self, start: int, stop: int) -> str:
        return self.raw[start + 8 : stop].decode("utf-8", "surrogateescape")


class Cursor:
    """A position in the file. `what` in its methods says in error messages which field was being read."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data = data
        self.path = path
        self.position = 0

    @property
    def left(self) -> int:
        """Bytes from here to the end of the file."""
        return len(self.data) - self.position

    def fail(
        self, what: str, *, found: object, allowed: object = None, action: str = DAMAGED
    ) -> CheckpointError:
        """The error for a field that can't be right."""
        return CheckpointError(f"{self.path}: {what}", found=found, allowed=allowed, action=action)

    def skip(self, count: int, what: str) -> int:
        """Step over `count` bytes; returns where they start."""
        if count > self.left:
            raise self.fail(
                f"{what} runs past the end of the file",
                found=f"{count} bytes at offset {self.position}",
                allowed=f"at most {self.left}",
            )
        start = self.position
        self.position += count
        return start

    def number(self, code: str, what: str) -> Any:
        """One little-endian scalar with this struct format character."""
        start = self.skip(struct.calcsize("<" + code), what)
        return struct.unpack_from("<" + code, self.data, start)[0]

    def count(self, bytes_each: int, what: str) -> int:
        """A 64-bit count of things that take at least `bytes_each` bytes each in the rest of the file."""
        count = int(self.number("Q", what))
        if count > self.left // bytes_each:
            raise self.fail(
                f"{what} is more than the file has room for",
                found=count,
                allowed=f"at most {self.left // bytes_each} in the {self.left} bytes left",
            )
        return count

    def string_bytes(self, what: str) -> bytes:
        """A 64-bit length and that many bytes."""
        length = self.count(1, f"the length of {what}")
        start = self.skip(length, what)
        return self.data[start : start + length]

    def name(self, what: str) -> str:
        """A string that must be UTF-8: the key of a value or the name of a tensor."""
        text = self.string_bytes(what)
        if len(text) > _LONGEST_NAME:
            raise self.fail(f"{what} is too long", found=len(text), allowed=f"at most {_LONGEST_NAME} bytes")
        try:
            return text.decode()
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8", found=repr(text[:64])) from None

    def value(self, kind: ValueType, key: str) -> Any:
        """A metadata value of this type."""
        if kind is ValueType.STRING:
            return self.string_bytes(f"the value of {key}").decode("utf-8", "surrogateescape")
        if kind is ValueType.ARRAY:
            return self._array(key)
        if kind is ValueType.BOOL:
            byte = self.number("B", f"the value of {key}")
            if byte > 1:
                raise self.fail(f"{key} is a truth value", found=byte, allowed="0 or 1")
            return bool(byte)
        return self.number(SCALAR_CODES[kind], f"the value of {key}")

    def value_type(self, key: str) -> ValueType:
        """The number that says what kind of value follows."""
        number = self.number("I", f"the type of {key}")
        try:
            return ValueType(number)
        except ValueError:
            allowed = ", ".join(f"{t.value} ({t.name.lower()})" for t in ValueType)
            raise self.fail(f"{key} has an unknown value type", found=number, allowed=allowed) from None

    def _array(self, key: str) -> GgufArray:
        kind = self.value_type(f"the elements of {key}")
        if kind is ValueType.ARRAY:
            raise self.fail(
                f"{key} is an array of arrays",
                found="nested arrays",
                allowed="arrays of numbers, truth values or strings",
                action="No runtime reads such a file; make it again with llama.cpp's converter or fewbits.",
            )
        what = f"the length of the array {key}"
        if kind is ValueType.STRING:
            count = self.count(8, what)
            start = self.position
            offsets = self._string_offsets(count, key)
            return GgufArray(kind, self.data[start : self.position], count, offsets)
        size = struct.calcsize("<" + SCALAR_CODES[kind])
        count = self.count(size, what)
        start = self.skip(count * size, f"the array {key}")
        raw = self.data[start : self.position]
        if kind is ValueType.BOOL and raw.translate(None, b"\0\1"):
            raise self.fail(f"{key} is an array of truth values", found="other numbers", allowed="0 or 1")
        return GgufArray(kind, raw, count)

    def _string_offsets(self, count: int, key: str) -> npt.NDArray[np.int64]:
        """Step over `count` strings; where each starts, from the first one on: int64 [count + 1].

        Vocabularies hold hundreds of thousands of strings, nearly all shorter than 256 bytes: their lengths
        are taken from the lowest byte alone, and the seven others are compared with zero afterwards.
        """
        base = self.position
        offsets = np.empty(count + 1, np.int64)
        offsets[0] = 0
        for first in range(0, count, _STRINGS_AT_ONCE):
            number = min(_STRINGS_AT_ONCE, count - first)
            ends = self._short_strings(number)
            if ends is None:
                ends = self._any_strings(number, key)
            offsets[first + 1 : first + number + 1] = ends
            self.position = int(ends[-1])
        offsets[1:] -= base
        return offsets

    def _short_strings(self, number: int) -> npt.NDArray[np.int64] | None:
        """Ends of the next strings, or None when one is longer than 255 bytes or the file ends."""
        data, position = self.data, self.position
        starts = []
        try:
            for _ in range(number):
                starts.append(position)
                position += data[position] + 8
        except IndexError:
            return None
        if position > len(data):
            return None
        starts.append(position)
        bounds = np.array(starts, np.int64)
        everything = np.frombuffer(data, np.uint8)
        if everything[bounds[:-1, None] + np.arange(1, 8)].any():
            return None
        return bounds[1:]

    def _any_strings(self, number: int, key: str) -> npt.NDArray[np.int64]:
        """Ends of the next strings, each checked on its own."""
        ends = np.empty(number, np.int64)
        for i in range(number):
            length = self.count(1, f"the length of a string of {key}")
            self.skip(length, f"a string of {key}")
            ends[i] = self.position
        return ends
