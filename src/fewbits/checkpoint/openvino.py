"""Reading the directory that becomes OpenVINO's graph.

X.codes, X.scales, X.zero_points   →   X.weight in, say, OV4_G64
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fewbits.checkpoint.checkpoint import StoredTensor
from fewbits.checkpoint.packed import PackedReader
from fewbits.formats.openvino import FORMATS

PARTS = ("codes", "scales", "zero_points")
MARKERS = ("codes",)
METHOD = "openvino"


class OpenvinoReader(PackedReader):
    """The directory's modules, whose formats its config lists by name."""

    markers = MARKERS
    parts = PARTS

    def __init__(self, modules: Mapping[str, Any]) -> None:
        self._modules = modules

    def format_of(self, module: str, parts: Mapping[str, StoredTensor]) -> tuple[str, tuple[int, int]] | None:
        """See `PackedReader.format_of`."""
        name = self._modules.get(module)
        codes = parts["codes"]
        if name not in FORMATS or len(codes.shape) != 2:
            return None
        rows, held = codes.shape
        return name, (rows, held * 2 if name.startswith("OV4") else held)


def reader_for(config: Mapping[str, Any], quantization: Mapping[str, Any]) -> PackedReader | None:
    """The reader for a directory described so; None if it lists no modules."""
    del config
    modules = quantization.get("modules")
    return OpenvinoReader(modules) if isinstance(modules, Mapping) else None
