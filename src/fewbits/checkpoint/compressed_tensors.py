"""Reading what compressed-tensors has packed.

X.weight_packed, X.weight_scale, X.weight_zero_point, X.weight_shape   →   X.weight in, say, INT4_G64
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from fewbits.checkpoint.checkpoint import StoredTensor
from fewbits.checkpoint.packed import WEIGHT, PackedReader
from fewbits.errors import CheckpointError
from fewbits.formats.compressed_tensors import (
    INPUT_GLOBAL_SCALE,
    INPUT_SCALE,
    SHAPE_PART,
    Scheme,
    scheme_described_by,
)

PARTS = ("weight_packed", "weight_scale", "weight_zero_point", "weight_global_scale", SHAPE_PART, WEIGHT)
INPUT_PARTS = (INPUT_SCALE, INPUT_GLOBAL_SCALE)
MARKERS = ("weight_scale",)
_ACTIVATIONS = re.compile(
    r".*\.((input|output)_(scale|zero_point|global_scale)|[kqv]_scale|[kqv]_zero_point)"
)


class CompressedTensorsReader(PackedReader):
    """compressed-tensors' modules, by the groups of its config."""

    markers = MARKERS
    parts = PARTS
    ignored = _ACTIVATIONS
    input_parts = INPUT_PARTS

    def __init__(self, groups: list[tuple[list[str], Scheme]]) -> None:
        self._groups = groups

    def format_of(self, module: str, parts: Mapping[str, StoredTensor]) -> tuple[str, tuple[int, int]] | None:
        """See `PackedReader.format_of`."""
        scheme = self._scheme_for(module)
        return None if scheme is None else (scheme.format, _shape_of(f"{module}.{WEIGHT}", scheme, parts))

    def _scheme_for(self, module: str) -> Scheme | None:
        """That of the group with the module's name, else with a pattern that matches it, else with its class."""
        for matches in (_is_name, _is_pattern, _is_class):
            for targets, scheme in self._groups:
                if any(matches(target, module) for target in targets):
                    return scheme
        return None


def reader_for(config: Mapping[str, Any], quantization: Mapping[str, Any]) -> PackedReader | None:
    """The reader for a directory described so; None if one of its groups isn't known."""
    del config
    groups = quantization.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        return None
    found = []
    for group in groups.values():
        if not isinstance(group, Mapping) or not isinstance(group.get("targets"), list):
            return None
        layout = group.get("format") or quantization.get("format")
        scheme = scheme_described_by(group.get("weights"), layout, group.get("input_activations"))
        if scheme is None:
            return None
        found.append(([str(target) for target in group["targets"]], scheme))
    return CompressedTensorsReader(found)


def _is_name(target: str, module: str) -> bool:
    return target == module


def _is_pattern(target: str, module: str) -> bool:
    try:
        return target.startswith("re:") and re.match(target.removeprefix("re:"), module) is not None
    except re.error:
        return False


def _is_class(target: str, module: str) -> bool:
    del module
    return target == "Linear"


def _shape_of(name: str, scheme: Scheme, parts: Mapping[str, StoredTensor]) -> tuple[int, int]:
    """Rows and columns of the weight."""
    if scheme.shape_part:
        shape = parts.get(SHAPE_PART)
        if shape is None or shape.dtype != "I64" or shape.shape != (2,):
            raise CheckpointError(f"{name} has no usable {SHAPE_PART}", action="Download the model again")
        rows, columns = shape.raw(0, 1).view(np.int64).reshape(2).tolist()
        if not (0 < rows < 1 << 40 and 0 < columns < 1 << 40):
            raise CheckpointError(f"{name} has no usable {SHAPE_PART}", found=[rows, columns])
        return rows, columns
    for part, tensor in parts.items():
        if part in (WEIGHT, "weight_packed") and len(tensor.shape) == 2:
            rows, columns = tensor.shape
            return rows, columns * (8 // scheme.weights["num_bits"] if part != WEIGHT else 1)
    raise CheckpointError(f"{name} has no array of codes", found=", ".join(parts))
