"""Which models a fixed program with a key-value cache can hold, by config.json and the tensors' names."""

from __future__ import annotations

from typing import Any

from fewbits.checkpoint.checkpoint import Checkpoint
from fewbits.errors import ArchitectureError

# Positions of the cache, where the model is made for more: what a phone has memory for.
CONTEXT = 2048
_LAYERS = ("full_attention", "sliding_attention")
# Settings of attention without one key and value per head and position.
_OTHER_ATTENTION = ("kv_lora_rank", "compress_ratios", "index_topk")
_NEAREST = "Choose another container, such as gguf"


def require_plain_decoder(checkpoint: Checkpoint, container: str) -> None:
    """Refuse a model whose blocks are anything but attention with a cache and dense linear maps.

    Raises:
        ArchitectureError: with what was found.
    """
    config = _text_config(checkpoint)
    found = None
    stacked = [name for name, t in checkpoint.tensors.items() if ".experts." in name or len(t.shape) > 2]
    if others := sorted(set(config.get("layer_types") or ()) - set(_LAYERS)):
        found = f"layers of {', '.join(others)}"
    elif others := [key for key in _OTHER_ATTENTION if config.get(key)]:
        found = f"attention with {others[0]}"
    elif stacked:
        found = f"experts or convolutions, such as {stacked[0]}"
    elif not all(key in config for key in ("num_hidden_layers", "num_attention_heads", "hidden_size")):
        found = f"model_type {config.get('model_type')}, whose config names no blocks of attention"
    if found:
        raise ArchitectureError(
            f"fewbits writes {container} for decoders of attention and dense linear maps only", found=found,
            action=_NEAREST,
        )  # fmt: skip


def context_of(checkpoint: Checkpoint) -> int:
    """Positions of the cache: what the model is made for, at most `CONTEXT`; within its attention window if it has one.

    A program has one mask for all layers, which within the window is right for those with and without one.
    """
    config = _text_config(checkpoint)
    sliding = "sliding_attention" in (config.get("layer_types") or ("sliding_attention",))
    window = config.get("sliding_window") if sliding and config.get("use_sliding_window", True) else None
    limits = [n for n in (config.get("max_position_embeddings"), window) if isinstance(n, int) and n > 0]
    return min([CONTEXT, *limits])


def _text_config(checkpoint: Checkpoint) -> dict[str, Any]:
    config = dict(checkpoint.config)
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, dict) else config
