"""Reading the directory that a runtime's graph is converted from; only fewbits writes and reads it.

X.codes, X.scales, X.zeros   →   X.weight in the format, and of the shape, that config.json names for X
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fewbits.checkpoint.checkpoint import StoredTensor
from fewbits.checkpoint.packed import PackedReader

METHOD = "fewbits"
PARTS = ("codes", "scales", "zeros")
MARKERS = ("codes",)


class GraphReader(PackedReader):
    """Modules by the config's list of them."""

    markers = MARKERS
    parts = PARTS

    def __init__(self, modules: Mapping[str, Any]) -> None:
        self._modules = modules

    def format_of(self, module: str, parts: Mapping[str, StoredTensor]) -> tuple[str, tuple[int, int]] | None:
        """See `PackedReader.format_of`."""
        del parts
        described = self._modules.get(module)
        if not isinstance(described, Mapping):
            return None
        rows, columns = described["shape"]
        return str(described["format"]), (int(rows), int(columns))


def reader_for(config: Mapping[str, Any], quantization: Mapping[str, Any]) -> PackedReader | None:
    """The reader for a directory described so."""
    del config
    modules = quantization.get("modules")
    return GraphReader(modules) if isinstance(modules, Mapping) else None
