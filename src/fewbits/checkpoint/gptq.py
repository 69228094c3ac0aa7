"""Reading what GPTQModel, AutoGPTQ and fewbits packed for GPTQ's kernels.

X.qweight, X.qzeros, X.scales, X.g_idx   →   X.weight in, say, GPTQ4_G128_SYM
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from fewbits.checkpoint.checkpoint import StoredTensor
from fewbits.checkpoint.packed import PackedReader
from fewbits.formats.gptq import GROUPS, WIDTHS, gptq_name

PARTS = ("qweight", "qzeros", "scales", "g_idx")
MARKERS = ("qweight",)
# Zero points of symmetric formats are stored less 1 in the first version, as they are in the second.
VERSIONS = {True: "gptq", False: "gptq_v2"}


class GptqReader(PackedReader):
    """GPTQ's modules, by the config's bits and groups and its exceptions by module."""

    markers = MARKERS
    parts = PARTS

    def __init__(self, described: Mapping[str, Any]) -> None:
        self._described = described

    def format_of(self, module: str, parts: Mapping[str, StoredTensor]) -> tuple[str, tuple[int, int]] | None:
        """See `PackedReader.format_of`."""
        described = {**self._described, **_exception(self._described.get("dynamic"), module)}
        width, group, symmetric = (described.get(key) for key in ("bits", "group_size", "sym"))
        words, order = parts["qweight"], parts.get("g_idx")
        if width not in WIDTHS or group not in (*GROUPS, -1) or not isinstance(symmetric, bool):
            return None
        if len(words.shape) != 2 or order is None or words.shape[0] * 32 % width:
            return None
        columns = words.shape[0] * 32 // width
        if not _in_order(order, columns, columns if group == -1 else group):
            return None  # columns sorted by activations: none of our formats has them
        name = gptq_name(width, max(group, 0), symmetric=symmetric)
        return name, (words.shape[1], columns)


def reader_for(config: Mapping[str, Any], quantization: Mapping[str, Any]) -> PackedReader | None:
    """The reader for a directory described so; None where zero points are stored otherwise than by our formats."""
    del config
    version = quantization.get("checkpoint_format", quantization.get("format", "gptq"))
    symmetric = quantization.get("sym")
    if not isinstance(symmetric, bool) or version != VERSIONS[symmetric]:
        return None
    return GptqReader(quantization)


def _exception(dynamic: object, module: str) -> Mapping[str, Any]:
    """What the first of the patterns that matches a module changes for it."""
    for pattern, change in dynamic.items() if isinstance(dynamic, Mapping) else ():
        try:
            matches = re.match(str(pattern).removeprefix("+:"), module) is not None
        except re.error:
            continue
        if matches and isinstance(change, Mapping):
            return change
    return {}


def _in_order(order: StoredTensor, columns: int, group: int) -> bool:
    if order.dtype != "I32" or order.shape != (columns,):
        return False
    return bool((order.raw(0, 1).view("<i4").reshape(-1) == np.arange(columns) // group).all())
