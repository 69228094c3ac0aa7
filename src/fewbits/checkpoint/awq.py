"""Reading what AutoAWQ, GPTQModel and fewbits packed for AWQ's kernels.

X.qweight, X.qzeros, X.scales   →   X.weight in, say, AWQ4_G128
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fewbits.checkpoint.checkpoint import StoredTensor
from fewbits.checkpoint.packed import PackedReader
from fewbits.formats.awq import GROUPS

PARTS = ("qweight", "qzeros", "scales")
MARKERS = ("qweight",)


class AwqReader(PackedReader):
    """AWQ's modules, all in one format."""

    markers = MARKERS
    parts = PARTS

    def __init__(self, group: int) -> None:
        self._group = group

    def format_of(self, module: str, parts: Mapping[str, StoredTensor]) -> tuple[str, tuple[int, int]] | None:
        """See `PackedReader.format_of`."""
        del module
        words = parts["qweight"]
        if len(words.shape) != 2:
            return None
        return f"AWQ4_G{self._group}", (words.shape[1] * 8, words.shape[0])


def reader_for(config: Mapping[str, Any], quantization: Mapping[str, Any]) -> PackedReader | None:
    """The reader for a directory described so; None for other widths and versions."""
    del config
    group = quantization.get("group_size")
    known = quantization.get("bits") == 4 and quantization.get("zero_point", True) is True
    version = str(quantization.get("version", quantization.get("format", "gemm"))).lower()
    return AwqReader(group) if known and version == "gemm" and group in GROUPS else None
