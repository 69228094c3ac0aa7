"""Tensors and settings that many architectures share, from which the table's entries are put together."""

from __future__ import annotations

from typing import Any

from fewbits.architectures.architecture import Experts, Field, Rule, Tensor
from fewbits.architectures.transforms import SAME, Interleave, Shift, Transform

EMBEDDING = (Tensor("model.embed_tokens.weight", "token_embd.weight"),)
FINAL_NORM = (Tensor("model.norm.weight", "output_norm.weight"),)
FINAL_NORM_BIAS = (Tensor("model.norm.bias", "output_norm.bias"),)

# llama.cpp rotates neighbouring pairs of columns for these architectures, transformers the two halves.
QUERY_PAIRS = Interleave("num_attention_heads")
KEY_PAIRS = Interleave("num_key_value_heads")
ONE_PLUS = Shift(1.0)  # gemma multiplies by 1 + weight


def attention(query: Transform = SAME, key: Transform = SAME, bias: bool | None = None) -> tuple[Rule, ...]:
    """The four projections. `bias` of q, k and v: True always there, None sometimes, False never."""
    weights = (
        Tensor("self_attn.q_proj.weight", "attn_q.weight", query),
        Tensor("self_attn.k_proj.weight", "attn_k.weight", key),
        Tensor("self_attn.v_proj.weight", "attn_v.weight"),
        Tensor("self_attn.o_proj.weight", "attn_output.weight"),
    )
    if bias is False:
        return weights
    return (
        *weights,
        Tensor("self_attn.q_proj.bias", "attn_q.bias", query, optional=bias is None),
        Tensor("self_attn.k_proj.bias", "attn_k.bias", key, optional=bias is None),
        Tensor("self_attn.v_proj.bias", "attn_v.bias", optional=bias is None),
    )


OUTPUT_BIAS = (Tensor("self_attn.o_proj.bias", "attn_output.bias", optional=True),)
LLAMA_ATTENTION = attention(QUERY_PAIRS, KEY_PAIRS) + OUTPUT_BIAS
HEAD_NORMS = (
    Tensor("self_attn.q_norm.weight", "attn_q_norm.weight"),
    Tensor("self_attn.k_norm.weight", "attn_k_norm.weight"),
)
PRE_NORMS = (
    Tensor("input_layernorm.weight", "attn_norm.weight"),
    Tensor("post_attention_layernorm.weight", "ffn_norm.weight"),
)
MLP = (
    Tensor("mlp.gate_proj.weight", "ffn_gate.weight"),
    Tensor("mlp.up_proj.weight", "ffn_up.weight"),
    Tensor("mlp.down_proj.weight", "ffn_down.weight"),
)
MLP_BIASES = (
    Tensor("mlp.gate_proj.bias", "ffn_gate.bias", optional=True),
    Tensor("mlp.up_proj.bias", "ffn_up.bias", optional=True),
    Tensor("mlp.down_proj.bias", "ffn_down.bias", optional=True),
)
QWEN_EXPERTS = Experts(
    gate_up="mlp.experts.gate_up_proj",
    down="mlp.experts.down_proj",
    each=(
        "mlp.experts.{e}.gate_proj.weight",
        "mlp.experts.{e}.up_proj.weight",
        "mlp.experts.{e}.down_proj.weight",
    ),
)

SIZES = (
    Field("context_length", "max_position_embeddings"),
    Field("embedding_length", "hidden_size"),
    Field("block_count", "num_hidden_layers"),
    Field("feed_forward_length", "intermediate_size"),
)
RMS_NORM = (Field("attention.layer_norm_rms_epsilon", "rms_norm_eps", float),)
LAYER_NORM = (Field("attention.layer_norm_epsilon", "layer_norm_eps", float),)
EXPERT_COUNTS = (
    Field("expert_count", "num_experts", older=("num_local_experts",)),
    Field("expert_used_count", "num_experts_per_tok"),
)

SILU = {"hidden_act": ("silu", "swish")}
GELU_TANH = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")


def sizes(
    vocabulary: int, hidden: int, ffn: int, blocks: int, heads: int, kv_heads: int | None, context: int
) -> dict[str, Any]:
    """Defaults that every configuration class has."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": context,
    }
