"""Reading what mlx-lm and fewbits packed for MLX.

X.weight, X.scales, X.biases   →   X.weight in, say, MLX4_G64
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fewbits.checkpoint.checkpoint import StoredTensor
from fewbits.checkpoint.packed import WEIGHT, PackedReader
from fewbits.formats.mlx import GROUPS, WIDTHS, affine_name
from fewbits.formats.scale_type import BFLOAT16, FLOAT16

PARTS = (WEIGHT, "scales", "biases")
MARKERS = ("scales",)
_SCALES = {scales.name: scales for scales in (BFLOAT16, FLOAT16)}


class MlxReader(PackedReader):
    """MLX's modules, by the config's bits, group and mode and its exceptions by module."""

    markers = MARKERS
    parts = PARTS

    def __init__(self, described: Mapping[str, Any]) -> None:
        self._described = described

    def format_of(self, module: str, parts: Mapping[str, StoredTensor]) -> tuple[str, tuple[int, int]] | None:
        """See `PackedReader.format_of`."""
        exception = self._described.get(module)
        described = exception if isinstance(exception, Mapping) else self._described
        width, group, mode = (
            described.get("bits"),
            described.get("group_size"),
            described.get("mode", "affine"),
        )
        words = parts.get(WEIGHT)
        if width not in WIDTHS or words is None or len(words.shape) != 2 or words.shape[1] * 32 % width:
            return None
        shape = (words.shape[0], words.shape[1] * 32 // width)
        if (mode, width, group) == ("mxfp4", 4, 32):
            return "MLX_MXFP4", shape
        scales = _SCALES.get(parts["scales"].dtype)
        if mode != "affine" or group not in GROUPS or scales is None:
            return None
        return affine_name(width, group, scales), shape


def reader_for(config: Mapping[str, Any], quantization: Mapping[str, Any]) -> PackedReader | None:
    """The reader for a directory described so; None if MLX hasn't described it."""
    return MlxReader(quantization) if isinstance(config.get("quantization"), Mapping) else None
