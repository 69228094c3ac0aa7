"""What the native engine is told of a model: the numbers of native/engine/config.h, from a GGUF file's metadata."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fewbits.architectures.architecture import Architecture, Config, Tensor
from fewbits.architectures.components import QUERY_PAIRS
from fewbits.architectures.interpreter import owner, to_hugging_face
from fewbits.architectures.rope import FREQUENCIES as DIVISORS
from fewbits.architectures.rope import FULL, LONG, SHORT, SLIDING, head_dim
from fewbits.architectures.table import ARCHITECTURES
from fewbits.checkpoint.checkpoint import Checkpoint
from fewbits.engine.frequencies import NONE, Frequencies, frequencies
from fewbits.errors import ArchitectureError, EngineError

# Tensors that native/engine/weights.cpp takes.
_IN_BLOCK = (
    r"attn_(norm|q|k|v|qkv|output|q_norm|k_norm)|post_attention_norm|ffn_norm|post_ffw_norm"
    r"|ffn_(gate|up|down)|ffn_(gate|up|down)_exps|ffn_gate_inp"
)
_TAKEN = re.compile(
    rf"(token_embd|output_norm|output|blk\.\d+\.({_IN_BLOCK}))\.(weight|bias)"
    rf"|{'|'.join(map(re.escape, (DIVISORS, LONG, SHORT)))}"
)
_SHOWN = 4
DEFAULT_CONTEXT = 4096


@dataclass(frozen=True)
class Description:
    """A model as the engine is told of it.

    Attributes:
        model_type: of the entry in the table of architectures.
        trained_context: positions that the model was made for.
        context: positions that a sequence may hold.
        config: for `_native.Engine`.
    """

    model_type: str
    trained_context: int
    context: int
    config: dict[str, Any]


def describe(checkpoint: Checkpoint, context: int | None = None) -> Description:
    """Read a GGUF checkpoint's metadata.

    Args:
        checkpoint: of a GGUF file.
        context: positions of a sequence; None: as many as the model was made for, 4096 at most.

    Raises:
        EngineError: an architecture, or tensors, that the engine doesn't know.
        ArchitectureError: settings or tensors that the architecture can't have.
    """
    try:
        entry = owner(checkpoint)
    except ArchitectureError as error:
        raise _unknown(str(checkpoint.metadata.get("general.architecture"))) from error
    if surplus := [name for name in checkpoint.tensors if not _TAKEN.fullmatch(name)]:
        raise _unknown(entry.model_type + " with " + ", ".join(surplus[:_SHOWN]))
    found, _ = to_hugging_face(checkpoint)
    config = entry.defaults | found  # what the file leaves out is what transformers takes
    trained = int(config["max_position_embeddings"])
    context = context or min(trained, DEFAULT_CONTEXT)
    return Description(entry.model_type, trained, context, _native_config(entry, config, context))


def _unknown(found: str) -> EngineError:
    known = sorted({entry.gguf for entry in ARCHITECTURES})
    return EngineError(
        "the engine doesn't know this architecture",
        found=found,
        allowed=", ".join(known),
        action="llama.cpp runs the file; `fewbits generate --runtime transformers` does if transformers has it.",
    )


def _native_config(entry: Architecture, config: Config, context: int) -> dict[str, Any]:
    ropes, rope_of = _ropes(config, context)
    return {
        "blocks": config["num_hidden_layers"],
        "hidden": config["hidden_size"],
        "heads": config["num_attention_heads"],
        "kv_heads": config["num_key_value_heads"],
        "head_size": head_dim(config),
        "vocabulary": config["vocab_size"],
        "epsilon": config["rms_norm_eps"],
        "gelu": "gelu" in str(config.get("hidden_activation") or config.get("hidden_act")),
        "interleaved": _interleaved(entry),
        "embedding_factor": entry.embedding_factor(config),
        "residual_factor": config.get("residual_multiplier", 1.0),
        "logit_factor": 1.0 / config.get("logits_scaling", 1.0),
        "attention_factor": _attention_factor(config),
        "attention_cap": config.get("attn_logit_softcapping") or 0.0,
        "logit_cap": config.get("final_logit_softcapping") or 0.0,
        "experts": _experts(config),
        "experts_used": config.get("num_experts_per_tok", 0),
        "experts_normalized": config.get("norm_topk_prob", True),
        "ropes": [(rope.radians.tolist(), rope.magnitude) for rope in ropes],
        "rope_of": rope_of,
        "window": _windows(config),
    }


def _interleaved(entry: Architecture) -> bool:
    """Whether llama.cpp's rows of q and k are ordered so that rotated pairs are neighbours."""
    return any(isinstance(rule, Tensor) and rule.transform is QUERY_PAIRS for rule in entry.blocks)


def _experts(config: Config) -> int:
    return int(config.get("num_local_experts") or config.get("num_experts") or 0)


def _attention_factor(config: Config) -> float:
    if "attention_multiplier" in config:
        return float(config["attention_multiplier"])
    scalar = float(config.get("query_pre_attn_scalar") or head_dim(config))
    return float(scalar**-0.5)


def _kinds(config: Config) -> list[str]:
    return list(config.get("layer_types") or [FULL] * config["num_hidden_layers"])


def _windows(config: Config) -> list[int]:
    return [config["sliding_window"] if kind == SLIDING else 0 for kind in _kinds(config)]


def _ropes(config: Config, context: int) -> tuple[list[Frequencies], list[int]]:
    """Each frequencies once, and which of them a block has."""
    kinds: list[str | None] = list(_kinds(config))
    for block, rotates in enumerate(config.get("no_rope_layers") or ()):
        if not rotates:
            kinds[block] = None
    distinct: Iterable[str | None] = dict.fromkeys(kinds)
    made = {kind: NONE if kind is None else frequencies(config, context, kind) for kind in distinct}
    order = list(made)
    return list(made.values()), [order.index(kind) for kind in kinds]
