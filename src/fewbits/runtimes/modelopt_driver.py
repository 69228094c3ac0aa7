"""ModelOpt directories unpacked by ModelOpt's own code; the unpacked weights are run by transformers.

The runtimes that compute with these weights (TensorRT-LLM, vLLM) need a GPU. What this shows is that the directory's
owner reads the numbers from it that fewbits means, and its description as config.json tells it; nothing is generated.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

REQUIREMENTS = (
    "torch==2.13.0", "nvidia-modelopt==0.47.0", "requests", "transformers", "accelerate", "safetensors",
)  # fmt: skip

# What ModelOpt's conversion of hf_quant_config.json must say as config.json does.
_ALIKE = ("ignore", "quant_algo", "quant_method", "producer")


def logits(model: str, tokens: list[int]) -> npt.NDArray[np.float32]:
    """float32 [T, V]."""
    import torch

    with torch.no_grad():
        found = _load(model)(torch.tensor([tokens])).logits[0].numpy()
    return np.asarray(found, np.float32)


def rounds_activations(model: str) -> bool:
    """The weights alone are run."""
    del model
    return False


def kv_cache(model: str) -> str:
    """Nothing is rounded but the weights."""
    del model
    return "float"


def fp8(arrays: dict[str, Any]) -> Any:
    """By ModelOpt's rule for FP8_PER_CHANNEL_PER_TOKEN, read from its to_quantized_weight."""
    import torch

    return arrays["weight"].to(torch.float32) * arrays["weight_scale"][:, None]


def nvfp4(arrays: dict[str, Any]) -> Any:
    """By ModelOpt's NVFP4QTensor."""
    import torch
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    packed, scale, second = (arrays[part] for part in ("weight", "weight_scale", "weight_scale_2"))
    shape = torch.Size((packed.shape[0], packed.shape[1] * 2))
    tensor = NVFP4QTensor(shape, torch.float32, packed)
    return tensor.dequantize(scale=scale, double_scale=second, block_sizes={-1: 16})


def int4(arrays: dict[str, Any]) -> Any:
    """Unpacked here, and packed again by ModelOpt to the same bytes."""
    import torch
    from modelopt.torch.export.quant_utils import pack_int4_in_uint8

    packed, scale = arrays["weight"], arrays["weight_scale"]
    nibbles = torch.stack([packed & 15, packed >> 4], dim=1).reshape(-1, packed.shape[1]).to(torch.int8)
    weight = torch.where(nibbles > 7, nibbles - 16, nibbles) * scale.repeat_interleave(128, dim=1)
    if not torch.equal(pack_int4_in_uint8(weight, scale, 128), packed):
        raise RuntimeError("ModelOpt packs the unpacked weights to other bytes")
    return weight


_UNPACK = {"FP8_PER_CHANNEL_PER_TOKEN": fp8, "W4A16_NVFP4": nvfp4, "W4A16_AWQ": int4}


def _check_description(folder: Path) -> Callable[[str], str]:
    """The algorithm of each module, after ModelOpt has converted the description to what config.json says."""
    from modelopt.torch.export.convert_hf_config import (
        _quant_algo_to_group_config,
        convert_hf_quant_config_format,
    )

    described = json.loads((folder / "hf_quant_config.json").read_bytes())
    config = json.loads((folder / "config.json").read_bytes())["quantization_config"]
    theirs = convert_hf_quant_config_format(described)
    if other := [key for key in _ALIKE if theirs.get(key) != config.get(key)]:
        raise RuntimeError(f"config.json and what ModelOpt makes of hf_quant_config.json differ: {other}")
    ours = [*config["config_groups"].values()]
    for mine, group in zip(ours, theirs.get("config_groups", {}).values(), strict=False):
        alike = group["weights"].items() <= mine["weights"].items() and group["targets"] == mine["targets"]
        if not alike:
            raise RuntimeError(f"ModelOpt describes the weights as {group['weights']}")
    quantization = described["quantization"]
    layers = quantization.get("quantized_layers", {})
    for name in {layer["quant_algo"] for layer in layers.values()} or {quantization["quant_algo"]}:
        if name not in _UNPACK or "weights" not in _quant_algo_to_group_config(name):
            raise RuntimeError(f"this driver doesn't unpack {name}, only {', '.join(_UNPACK)}")
    return lambda module: str(layers.get(module, quantization)["quant_algo"])


@cache
def _load(model: str) -> Any:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = Path(model)
    algorithm_of = _check_description(folder)
    arrays = {n: t for file in sorted(folder.glob("*.safetensors")) for n, t in load_file(file).items()}
    modules = [name.removesuffix(".weight_scale") for name in arrays if name.endswith(".weight_scale")]
    state = {n: t.to(torch.float32) for n, t in arrays.items() if n.rpartition(".")[0] not in modules}
    for module in modules:
        parts = {n.rpartition(".")[2]: t for n, t in arrays.items() if n.rpartition(".")[0] == module}
        state[f"{module}.weight"] = _UNPACK[algorithm_of(module)](parts)
    plain = AutoConfig.from_pretrained(folder)
    del plain.quantization_config
    loaded = AutoModelForCausalLM.from_config(plain, dtype=torch.float32)
    missing, unexpected = loaded.load_state_dict(state, strict=False)
    if missing not in ([], ["lm_head.weight"]) or unexpected:
        raise RuntimeError(f"weights are missing or unknown: {[*missing, *unexpected]}")
    loaded.tie_weights()
    return loaded.eval()
