"""Reading the directory that fewbits makes a program for ExecuTorch from.

X.weight, X.weight_scale   →   X.weight in, say, XNN4_G32
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fewbits.checkpoint.checkpoint import StoredTensor
from fewbits.checkpoint.packed import WEIGHT, PackedReader
from fewbits.formats.xnnpack import GROUPS, xnnpack_name

PARTS = ("weight_scale", WEIGHT)
MARKERS = ("weight_scale",)
METHOD = "xnnpack"


class XnnpackReader(PackedReader):
    """XNNPACK's modules: what their arrays are says what format they are."""

    markers = MARKERS
    parts = PARTS

    def format_of(self, module: str, parts: Mapping[str, StoredTensor]) -> tuple[str, tuple[int, int]] | None:
        """See `PackedReader.format_of`."""
        del module
        codes, scales = parts.get(WEIGHT), parts["weight_scale"]
        if codes is None or len(codes.shape) != 2:
            return None
        width = 4 if codes.dtype == "U8" else 8
        shape = (codes.shape[0], codes.shape[1] * (8 // width))
        if len(scales.shape) == 1:
            return xnnpack_name(width, 0), shape
        group = shape[1] // max(1, scales.shape[-1])
        return (xnnpack_name(width, group), shape) if width == 4 and group in GROUPS else None


def reader_for(config: Mapping[str, Any], quantization: Mapping[str, Any]) -> PackedReader:
    """The reader for a directory described so."""
    del config, quantization
    return XnnpackReader()
