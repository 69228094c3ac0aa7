"""Reading what NVIDIA's ModelOpt and fewbits packed.

X.weight, X.weight_scale, X.weight_scale_2   →   X.weight in, say, MODELOPT_NVFP4
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fewbits.checkpoint.checkpoint import StoredTensor
from fewbits.checkpoint.packed import WEIGHT, PackedReader

PARTS = ("weight_scale_2", "weight_scale", WEIGHT)
MARKERS = ("weight_scale",)
_ACTIVATIONS = re.compile(r".*\.((input|output)_scale|[kqv]_scale)")
# quant_algo and what goes with it -> fewbits' name. Weights of NVFP4 are alike whether activations are rounded or not.
ALGORITHMS: Mapping[str, Mapping[str, Any]] = {
    "MODELOPT_FP8": {"quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"},
    "MODELOPT_NVFP4": {"quant_algo": "W4A16_NVFP4", "group_size": 16},
    "MODELOPT_INT4_G128": {
        "quant_algo": "W4A16_AWQ", "group_size": 128, "has_zero_point": False, "pre_quant_scale": False
    },
}  # fmt: skip
_FORMATS = {
    **{str(described["quant_algo"]): name for name, described in ALGORITHMS.items()},
    "NVFP4": "MODELOPT_NVFP4",
}


class ModelOptReader(PackedReader):
    """ModelOpt's modules, by one algorithm for all or by module."""

    markers = MARKERS
    parts = PARTS
    ignored = _ACTIVATIONS

    def __init__(self, quantization: Mapping[str, Any]) -> None:
        self._algorithm = quantization.get("quant_algo")
        layers = quantization.get("quantized_layers")
        self._layers = layers if isinstance(layers, Mapping) else {}

    def format_of(self, module: str, parts: Mapping[str, StoredTensor]) -> tuple[str, tuple[int, int]] | None:
        """See `PackedReader.format_of`."""
        layer = self._layers.get(module)
        name = _FORMATS.get(str(layer.get("quant_algo") if isinstance(layer, Mapping) else self._algorithm))
        stored = parts[WEIGHT].shape if WEIGHT in parts else ()
        if name is None or len(stored) != 2:
            return None
        rows, columns = stored
        shapes = {"MODELOPT_NVFP4": (rows, 2 * columns), "MODELOPT_INT4_G128": (2 * rows, columns)}
        return name, shapes.get(name, (rows, columns))


def reader_for(config: Mapping[str, Any], quantization: Mapping[str, Any]) -> PackedReader | None:
    """The reader for a directory described so; None for algorithms whose weights aren't one of our formats."""
    del config
    algorithm = quantization.get("quant_algo")
    known = algorithm in _FORMATS or algorithm == "MIXED_PRECISION"
    return ModelOptReader(quantization) if known else None
