"""Writes a Hugging Face directory as NVIDIA's ModelOpt exports it, for TensorRT-LLM and vLLM.

The description stands twice: in hf_quant_config.json as ModelOpt has it, and in config.json under
``quantization_config`` in the words of compressed-tensors. Source: nvidia-modelopt, torch/export/quant_utils.py and
convert_hf_config.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fewbits.checkpoint.checkpoint import Checkpoint, Floats
from fewbits.checkpoint.modelopt import ALGORITHMS, MARKERS, PARTS
from fewbits.checkpoint.packed import WEIGHT
from fewbits.export.exporter import OutputTensor
from fewbits.export.hugging_face.directory import HuggingFaceDirectory, module_of
from fewbits.export.kv_cache import FP8, kv_cache_scheme, refuse_cache_alone, scale_tensor
from fewbits.version import __version__

_MIXED = "MIXED_PRECISION"
_HEAD = "lm_head"
_INT4 = "MODELOPT_INT4_G128"
_FP8 = "MODELOPT_FP8"
# convert_hf_config.py: what config.json says of the cache that hf_quant_config.json calls FP8.
_KV_CACHE = {"dynamic": False, "num_bits": 8, "type": "float"}
# What config.json says of weights and inputs.
_GROUPS: Mapping[str, Mapping[str, Any]] = {
    _FP8: {
        "input_activations": {"dynamic": True, "num_bits": 8, "type": "float", "strategy": "token"},
        "weights": {"dynamic": False, "num_bits": 8, "type": "float", "strategy": "channel"},
    },
    "MODELOPT_NVFP4": {"weights": {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16}},
    _INT4: {"weights": {"dynamic": False, "num_bits": 4, "type": "int", "group_size": 128}},
}


class ModelOptExporter(HuggingFaceDirectory):
    """ModelOpt's container."""

    name = "modelopt"
    formats = (_FP8, "MODELOPT_NVFP4", _INT4)
    planned = ("MODELOPT_NVFP4",)  # of mixtures, vLLM reads those of this with floating point
    default_format = "MODELOPT_NVFP4"
    markers = MARKERS
    parts = PARTS
    row_multiple = 2
    column_multiple = 16
    kv_caches = (FP8,)

    def cache_scale(self, attention: str, part: str, scales: Floats, block: int | None) -> OutputTensor:
        """See `Exporter.cache_scale`: a number, below the projection even where queries, keys and values are one."""
        return scale_tensor(f"{attention}.{part}_proj.{part}_scale", scales.reshape(()), "F32", block)

    def notes(self, checkpoint: Checkpoint, formats: Mapping[str, str]) -> tuple[str, ...]:
        """Which formats vLLM doesn't read (by its quantization/modelopt.py), and which weights stayed as they are."""
        chosen = {name for name in formats.values() if name in self.formats}
        notes = []
        if _INT4 in chosen:
            notes.append(f"{_INT4}: TensorRT-LLM reads this, vLLM doesn't; MODELOPT_NVFP4 both do")
        elif len(chosen) > 1:
            notes.append(
                "vLLM doesn't read mixtures with MODELOPT_FP8, TensorRT-LLM does; alone it is read by both"
            )
        if any(".experts." in name and fmt == _FP8 for name, fmt in formats.items()):
            notes.append(f"vLLM doesn't read experts in {_FP8}; it does in MODELOPT_NVFP4")
        return (*notes, *super().notes(checkpoint, formats))

    def description(self, tensors: Sequence[OutputTensor], formats: Mapping[str, str]) -> dict[str, Any]:
        """The description in config.json."""
        modules: dict[str, list[str]] = {}
        ignored = [_HEAD]
        for tensor in tensors:
            module = module_of(tensor)
            if formats[tensor.name] in self.formats:
                modules.setdefault(formats[tensor.name], []).append(module)
            elif len(tensor.shape) == 2 and tensor.name.endswith(WEIGHT) and tensor.role != "embedding":
                ignored.append(module)
        if not modules:
            refuse_cache_alone(tensors)
            return {}
        one = len(modules) == 1
        groups = {
            f"group_{i}": {**_GROUPS[name], "targets": ["Linear"] if one else sorted(modules[name])}
            for i, name in enumerate(modules)
        }
        layers = {module: dict(ALGORITHMS[name]) for name, members in modules.items() for module in members}
        described = {
            "config_groups": groups,
            "ignore": sorted(set(ignored)),
            **({"kv_cache_scheme": _KV_CACHE} if kv_cache_scheme(tensors) else {}),
            "producer": {"name": "fewbits", "version": __version__},
            **(
                ALGORITHMS[next(iter(modules))] if one else {"quant_algo": _MIXED, "quantized_layers": layers}
            ),
            "quant_method": "modelopt",
        }
        return {"quantization_config": described}

    def more_files(self, config: Mapping[str, Any]) -> dict[str, bytes]:
        """hf_quant_config.json."""
        described = config.get("quantization_config")
        if described is None:
            return {}
        repeated = ("quant_algo", "group_size", "has_zero_point", "pre_quant_scale", "quantized_layers")
        quantization = {
            **{key: described[key] for key in repeated if key in described},
            "exclude_modules": described["ignore"],
            "kv_cache_quant_algo": "FP8" if "kv_cache_scheme" in described else None,
        }
        data = {"producer": described["producer"], "quantization": quantization}
        return {"hf_quant_config.json": (json.dumps(data, indent=2) + "\n").encode()}
