"""Which reader reads which container of packed weights, by what config.json says. A container is a line here."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from fewbits.checkpoint.packed import PackedReader

# quant_method -> module with a function reader_for(config, quantization), imported on first use
_READERS = {
    "compressed-tensors": "fewbits.checkpoint.compressed_tensors",
    "fp8": "fewbits.checkpoint.fp8_blocks",
    "gptq": "fewbits.checkpoint.gptq",
    "awq": "fewbits.checkpoint.awq",
    "bitsandbytes": "fewbits.checkpoint.bitsandbytes",
    "modelopt": "fewbits.checkpoint.modelopt",
    "openvino": "fewbits.checkpoint.openvino",
    "xnnpack": "fewbits.checkpoint.xnnpack",
    "fewbits": "fewbits.checkpoint.graph_directory",
}
# That of descriptions without a quant_method.
_NAMELESS = "fewbits.checkpoint.mlx"


def reader_for(config: Mapping[str, Any], quantization: Mapping[str, Any]) -> PackedReader | None:
    """The reader for a directory, or None if fewbits doesn't know how its weights are packed.

    Args:
        config: config.json.
        quantization: the part of it that describes how weights are quantized.
    """
    method = quantization.get("quant_method")
    module = _READERS.get(str(method)) if method else _NAMELESS
    if module is None:
        return None
    found: PackedReader | None = import_module(module).reader_for(config, quantization)
    return found
