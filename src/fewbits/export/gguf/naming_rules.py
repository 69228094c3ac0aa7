"""What llama.cpp's tensor names say: whether a tensor may be quantized, its role and its block.

These rules need no architecture, so they serve every GGUF source. They are those that llama-quantize goes by.
"""

from __future__ import annotations

import re

# Parts of names whose tensors stay as they are: too small to matter, or read by code that expects floats.
_FLOATING_PARTS = (
    "_norm.weight",
    "ffn_gate_inp.weight",  # routers of experts
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
)
_FLOATING_NAMES = ("position_embd.weight", "token_types.weight")
_FLOATING_PATTERN = re.compile(r"time_mix_(w[012]|v[012]|a[012]|g[12]|decay_w[12])\.weight")
_BLOCK = re.compile(r"(?:[a-z]+\.)?blk\.(\d+)\.")
_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
_HEAD = "output.weight"


def allows_quantization(name: str, shape: tuple[int, ...]) -> bool:
    """Whether llama.cpp reads this tensor in quantized types: weights of two or more real dimensions.

    A dimension of 1 at the front of the shape doesn't count, as in ggml.
    """
    dimensions = len(shape)
    while dimensions > 1 and shape[-dimensions] == 1:
        dimensions -= 1
    return (
        dimensions >= 2
        and name.endswith("weight")
        and name not in _FLOATING_NAMES
        and not any(part in name for part in _FLOATING_PARTS)
        and not _FLOATING_PATTERN.search(name)
    )


def role_of(name: str, shape: tuple[int, ...]) -> str:
    """``embedding``, ``head``, ``linear`` or ``other``."""
    if name in _EMBEDDINGS:
        return "embedding"
    if name == _HEAD:
        return "head"
    return "linear" if allows_quantization(name, shape) else "other"


def block_of(name: str) -> int | None:
    """Index of the block in the name."""
    match = _BLOCK.match(name)
    return int(match[1]) if match else None
