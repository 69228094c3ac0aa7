"""transformers with compressed-tensors or bitsandbytes, as config.json's quantization_config asks.

compressed-tensors' weights are unpacked in each layer's forward pass, activations are rounded as its config says.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_OWNERS = {"compressed-tensors": "compressed-tensors==0.20.0", "bitsandbytes": "bitsandbytes==0.50.2"}
_COMMON = ("torch==2.13.0", "transformers==5.23.0", "accelerate==1.15.0")
REQUIREMENTS = (*_COMMON, *_OWNERS.values())


def requirements(model: str) -> tuple[str, ...]:
    """What loads it, and the package that owns the artifact's format."""
    owner = _OWNERS.get(_description(model).get("quant_method", ""))
    return (*_COMMON, owner) if owner else _COMMON


def arithmetic(model: str) -> str:
    """The dtype of activations: FP4 layers of compressed-tensors only load in bfloat16."""
    described = _description(model)
    groups = described.get("config_groups", {}).values()
    four = any(g["weights"].get("type") == "float" and g["weights"]["num_bits"] == 4 for g in groups)
    return "bfloat16" if four else "float32"


def logits(model: str, tokens: list[int]) -> npt.NDArray[np.float32]:
    """float32 [T, V]."""
    import torch

    with torch.no_grad():
        found = _load(model)(torch.tensor([tokens])).logits[0].float().numpy()
    return np.asarray(found, np.float32)


def generate(model: str, tokens: list[int], count: int) -> list[int]:
    """Greedy, by transformers' own loop; ends early at the end-of-text token."""
    import torch

    ids = torch.tensor([tokens])
    with torch.no_grad():
        found = _load(model).generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False
        )
    return [int(token) for token in found[0, len(tokens) :]]


def _description(model: str) -> dict[str, Any]:
    config = json.loads((Path(model) / "config.json").read_bytes())
    found: dict[str, Any] = config.get("quantization_config", {})
    return found


@cache
def _load(model: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if arithmetic(model) == "bfloat16" else torch.float32
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
    # It forgets the quantization of what the config tells it to unpack while loading.
    if getattr(loaded, "hf_quantizer", None) is None and not _description(model).get("dequantize"):
        raise RuntimeError("transformers loaded it as a model that isn't quantized")
    if _description(model).get("quant_method") == "bitsandbytes":
        _to_float32(loaded)
    return loaded


def _to_float32(model: Any) -> None:
    """Whatever isn't quantized: with bitsandbytes transformers keeps the file's dtype, whichever it is asked for."""
    import torch

    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype in (torch.bfloat16, torch.float16):
            tensor.data = tensor.data.float()
    for layer in model.modules():
        if hasattr(layer, "compute_type_is_set"):  # else the config's type would be it
            layer.compute_dtype, layer.compute_type_is_set = torch.float32, True
