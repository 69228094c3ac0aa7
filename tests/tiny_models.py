"""Tiny random models of each architecture, made by transformers and saved as Hugging Face directories.

Their weights are random and large enough for attention to be far from uniform; norms and biases are random
too, so that a tensor that is forgotten, permuted wrongly or shifted changes the logits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

VOCABULARY = 192
TOKENS = 48  # of the test sequence; longer than the sliding windows below

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
# No base is one that llama.cpp or transformers assumes without being told.
_ROPE = {"rope_type": "default", "rope_theta": 5000.0}
_ROPE_BY_LAYER = ("gemma3_text", "olmo3")
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 5000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
# 3/4 of a head of 16 is rotated
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 5000.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.05, 1.2, 1.5, 1.9, 2.5],
    "long_factor": [1.1, 1.5, 2.5, 4.0, 8.0, 16.0],
}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_SCALES = {
    "attention_multiplier": 0.3,
    "embedding_multiplier": 6.0,
    "residual_multiplier": 0.4,
    "logits_scaling": 1.5,
}


@dataclass(frozen=True)
class TinyModel:
    """A variant to be tested.

    Attributes:
        model_type: for transformers' AutoConfig.
        config: what differs from the sizes above.
        context: length that llama.cpp's context is made for, where it matters.
        saved: keys to overwrite in the saved config.json, to look like files of older versions; None removes.
    """

    model_type: str
    config: Mapping[str, Any] = field(default_factory=dict)
    context: int | None = None
    saved: Mapping[str, Any] = field(default_factory=dict)


TINY_MODELS: dict[str, TinyModel] = {
    "llama": TinyModel("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-llama3-rope": TinyModel("llama", {"rope_parameters": _LLAMA3, "tie_word_embeddings": True}),
    "llama-old-config": TinyModel(
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 3000.0}, "head_dim": 32},
        saved={
            "rope_parameters": None,
            "rope_theta": 3000.0,
            "rope_scaling": {"type": "linear", "factor": 2.0},
        },
    ),
    "mistral": TinyModel("mistral", {"sliding_window": None, "head_dim": 24}),
    "mixtral": TinyModel("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": TinyModel("qwen2", {"tie_word_embeddings": True}),
    "qwen2-yarn": TinyModel("qwen2", {"rope_parameters": _YARN | {"attention_factor": 1.3}}),
    "qwen3": TinyModel("qwen3", {"head_dim": 32}),
    "qwen2_moe": TinyModel(
        "qwen2_moe",
        _EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 64, "num_hidden_layers": 2},
    ),
    "qwen3_moe": TinyModel(
        "qwen3_moe",
        _EXPERTS | {"num_experts": 4, "norm_topk_prob": True, "head_dim": 32},
    ),
    "gemma": TinyModel("gemma", {"head_dim": 32}),
    "gemma2": TinyModel(
        "gemma2",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 16,
            "num_hidden_layers": 4,
            "attn_logit_softcapping": 6.0,
            "final_logit_softcapping": 8.0,
        },
    ),
    "gemma3_text": TinyModel(
        "gemma3_text",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 16,
            "num_hidden_layers": 7,
            "rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE | {"rope_theta": 300.0}},
        },
    ),
    "gemma3_text-untied": TinyModel(
        "gemma3_text",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 16,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "tie_word_embeddings": False,
            "final_logit_softcapping": 8.0,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 50000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
            },
        },
    ),
    "phi3": TinyModel("phi3", {"original_max_position_embeddings": 256}),
    "phi3-longrope-long": TinyModel(
        "phi3", {"rope_parameters": _LONGROPE, "original_max_position_embeddings": 32}, context=256
    ),
    "phi3-longrope-short": TinyModel(
        "phi3",
        {
            "rope_parameters": _LONGROPE,
            "original_max_position_embeddings": 256,
            "max_position_embeddings": 1024,
            "tie_word_embeddings": True,
        },
        context=256,
    ),
    "smollm3": TinyModel("smollm3", {"num_hidden_layers": 5}),
    "olmo2": TinyModel("olmo2"),
    "olmo2-tied": TinyModel("olmo2", {"tie_word_embeddings": True, "num_hidden_layers": 2}),
    "olmo3": TinyModel(
        "olmo3",
        {
            "sliding_window": 16,
            "num_hidden_layers": 5,
            "rope_parameters": {
                "full_attention": _YARN,
                "sliding_attention": _ROPE,
            },
        },
    ),
    "granite": TinyModel("granite", _SCALES | {"attention_bias": True, "tie_word_embeddings": True}),
    "granitemoe": TinyModel(
        "granitemoe", _SCALES | {"num_local_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 2}
    ),
}


def sample_tokens() -> list[int]:
    """A fixed random sequence."""
    return np.random.default_rng(7).integers(0, VOCABULARY, TOKENS).tolist()


def build(tiny: TinyModel, **sizes: float) -> Any:
    """The model itself: torch, float32, eager attention, seeded; `sizes` go before those of the variant."""
    from transformers import AutoConfig, AutoModelForCausalLM

    rope = {} if tiny.model_type in _ROPE_BY_LAYER else {"rope_parameters": dict(_ROPE)}
    config = AutoConfig.for_model(tiny.model_type, **_SIZES | rope | dict(tiny.config) | sizes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().float()
    randomize(model)
    return model


def randomize(model: Any, seed: int = 1) -> None:
    """Fill every parameter: matrices keep activations' size, vectors lie around their usual value."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    embedding = model.get_input_embeddings().weight
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            if parameter is embedding:
                parameter.copy_(noise * 0.3)
            elif parameter.dim() >= 2:
                parameter.copy_(noise * 1.2 / parameter.shape[-1] ** 0.5)
            elif name.endswith("bias"):
                parameter.copy_(noise * 0.2)
            else:  # norms: 1 + weight in gemma, weight elsewhere; `data` tells which
                usual = parameter.detach().mean().round()
                parameter.copy_(usual + noise * 0.2)


def save(tiny: TinyModel, directory: Path) -> Any:
    """Write the model's directory; the model is returned too."""
    model = build(tiny)
    save_built(tiny, model, directory)
    return model


def save_built(tiny: TinyModel, model: Any, directory: Path) -> None:
    """Write the directory of a model that `build` made of the variant."""
    model.save_pretrained(directory)
    path = directory / "config.json"
    config = json.loads(path.read_text())
    for key, value in tiny.saved.items():
        config[key] = value
    path.write_text(
        json.dumps(
            {key: value for key, value in config.items() if value is not None or key not in tiny.saved}
        )
    )


def transformers_logits(model: Any, tokens: list[int]) -> npt.NDArray[np.float32]:
    """Logits after every token, float32 [tokens, vocabulary]."""
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([tokens]), use_cache=False).logits
    result: npt.NDArray[np.float32] = logits[0].float().numpy()
    return result
