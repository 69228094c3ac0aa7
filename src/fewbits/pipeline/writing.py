"""Putting the finished bytes of tensors where the layout wants them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from zlib_ng.zlib_ng import crc32

from fewbits.export.exporter import Layout, Region
from fewbits.pipeline.journal import Journal
from fewbits.pipeline.tensors import Bytes, Chunk


class TensorWriter:
    """Writes the chunks of one tensor after another, each part at its own place, and notes what is finished."""

    def __init__(self, layout: Layout, journal: Journal) -> None:
        self._layout = layout
        self._journal = journal
        self._parts: Mapping[str, Region] = {}
        self._done: dict[str, int] = {}  # bytes written of each part
        self._checksums: dict[str, int] = {}
        # Of parts that are transposed, until the tensor is complete.
        self._columns: dict[str, list[Bytes]] = {}
        self._undone = False

    def headers(self) -> None:
        """Write everything that isn't a tensor."""
        for name, file in self._layout.files.items():
            self._journal.write(file.header, 0, name)

    def write(self, chunk: Chunk, kept: bool) -> None:
        """Write a chunk; `kept` says whether the plan's algorithm was kept for it.

        Raises:
            OutputError: the disk is full or fails.
        """
        if not self._parts:
            self._begin(chunk.tensor.name)
        for name, data in chunk.parts.items():
            if self._parts[name].lines:
                self._columns.setdefault(name, []).append(data)
            elif not (self._parts[name].repeated and self._done[name]):
                self._put(name, data.data)
        self._undone |= not kept
        if chunk.last:
            for name, pieces in self._columns.items():
                whole = np.concatenate([p.reshape(self._parts[name].lines, -1) for p in pieces], axis=1)
                self._put(name, whole.reshape(-1).data)
            self._columns = {}
            checksums = tuple(self._checksums[name] for name in self._parts)
            self._journal.finish(chunk.tensor.name, checksums, undone=self._undone)
            self._parts = {}

    def _begin(self, name: str) -> None:
        self._parts = self._layout.parts[name]
        self._done = dict.fromkeys(self._parts, 0)
        self._checksums = dict.fromkeys(self._parts, 0)
        self._undone = False
        for part, region in self._parts.items():
            if region.content is not None:
                self._put(part, memoryview(region.content))

    def _put(self, name: str, data: memoryview) -> None:
        region, done = self._parts[name], self._done[name]
        if done + len(data) > region.nbytes:
            raise AssertionError(f"{name}: {done + len(data)} bytes for a region of {region.nbytes}")
        self._journal.write(data, region.offset + done, region.file)
        self._done[name] = done + len(data)
        self._checksums[name] = crc32(data, self._checksums[name])
