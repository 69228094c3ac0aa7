"""A model of transformers in the form that ExecuTorch's runners for language models take.

    forward(tokens int64 [1, T], position int64 [1]) -> logits float32 [1, 1, V] of the last token

Keys and values are kept within the program, in buffers that ExecuTorch's operators for attention update in place; T is
anything from 1 to the context's length.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from fewbits.checkpoint.checkpoint import Checkpoint
from fewbits.checkpoint.packed import PackedTensor
from fewbits.export.executorch.layers import (
    ATTENTION,
    QuantizedEmbedding,
    QuantizedLinear,
    cached_attention,
    whole,
)
from fewbits.language_model.skeleton import Skeleton, build_skeleton, read_parameter


class Decoder(nn.Module):
    """The model with caches."""

    def __init__(self, model: Any, context: int) -> None:
        super().__init__()
        self.model, self.context = model, context

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        """See the module."""
        start = position[0].item()
        check: Any = torch._check  # what the export may take for granted
        check(start >= 0)
        check(start < self.context)
        check(start + tokens.shape[1] <= self.context)
        positions = position + torch.arange(tokens.shape[1]).unsqueeze(0)
        found = self.model(
            input_ids=tokens, position_ids=positions, use_cache=False, logits_to_keep=1, cache_start=start
        )
        logits: Tensor = found.logits
        return logits


def build_decoder(quantized: Checkpoint, context: int) -> tuple[Decoder, Mapping[str, str]]:
    """The model of a directory in XNNPACK's formats, with our codes and scales in it.

    Args:
        quantized: the directory.
        context: tokens that the caches hold.

    Returns:
        The model, and by name of each module of it that is quantized the name of its weight in the directory.

    Raises:
        EvaluationError: transformers can't build it, or tensors are missing or of another shape.
    """
    skeleton = build_skeleton(quantized)
    AttentionInterface.register(ATTENTION, cached_attention)
    AttentionMaskInterface.register(ATTENTION, _no_mask)
    skeleton.model.config._attn_implementation = ATTENTION
    modules: dict[str, str] = {}
    for path, module in list(skeleton.model.named_modules()):
        if isinstance(module, nn.Linear | nn.Embedding) and path:
            name = f"{path}.weight"
            name = skeleton.embedding if name not in skeleton.tensors else name  # a tied head
            tensor = skeleton.tensors[name]
            if isinstance(tensor, PackedTensor):
                _replace(skeleton.model, path, _quantized(skeleton, path, module, tensor))
                modules[f"model.{path}"] = tensor.name
            else:
                module.weight = nn.Parameter(read_parameter(tensor, torch.float32), requires_grad=False)
    skeleton.fill(skeleton.model, "", torch.float32)
    _add_caches(skeleton.model, context)
    return Decoder(skeleton.model, context).eval(), modules


def _quantized(skeleton: Skeleton, path: str, module: nn.Module, tensor: PackedTensor) -> nn.Module:
    if isinstance(module, nn.Embedding):
        return QuantizedEmbedding(whole(tensor), float(getattr(module, "scalar_embed_scale", 1.0)))
    bias = skeleton.tensors.get(f"{path}.bias") if getattr(module, "bias", None) is not None else None
    return QuantizedLinear(whole(tensor), None if bias is None else read_parameter(bias, torch.float32))


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def _add_caches(model: Any, context: int) -> None:
    """Give every attention its keys and values, float32 [1, context, heads, width of a head]."""
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    for module in model.modules():
        if hasattr(module, "layer_idx") and hasattr(module, "o_proj"):
            shape = (1, context, heads, module.head_dim)
            module.register_buffer("key_cache", torch.zeros(shape), persistent=False)
            module.register_buffer("value_cache", torch.zeros(shape), persistent=False)


def _no_mask(*_: Any, **__: Any) -> None:
    """ExecuTorch's operator knows what is causal by itself."""
