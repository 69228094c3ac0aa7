"""The table of architectures: what differs between models, as data. Adding one is adding one entry.

Sources: transformers' modeling and configuration files for the Hugging Face names, llama.cpp's model
loaders for the GGUF names and for what each of its implementations takes for granted.
"""

from __future__ import annotations

from dataclasses import replace

from fewbits.architectures.architecture import Architecture, Experts, Field, Tensor
from fewbits.architectures.attention import (
    ALL_SPARSE,
    ATTENTION_BIAS,
    EVERY_FOURTH_WITHOUT_ROPE,
    HEADS,
    MLP_BIAS,
    SOFT_CAPS,
    biases,
    gemma_scale,
    sliding_window,
)
from fewbits.architectures.components import (
    EMBEDDING,
    EXPERT_COUNTS,
    FINAL_NORM,
    GELU_TANH,
    HEAD_NORMS,
    KEY_PAIRS,
    LLAMA_ATTENTION,
    MLP,
    MLP_BIASES,
    ONE_PLUS,
    OUTPUT_BIAS,
    PRE_NORMS,
    QUERY_PAIRS,
    QWEN_EXPERTS,
    RMS_NORM,
    SILU,
    SIZES,
    attention,
    sizes,
)
from fewbits.architectures.rope import LONGROPE, rope, rope_by_layer
from fewbits.architectures.transforms import RowAsVector

LLAMA = Architecture(
    model_type="llama",
    gguf="llama",
    before=EMBEDDING,
    blocks=PRE_NORMS[:1] + LLAMA_ATTENTION + PRE_NORMS[1:] + MLP + MLP_BIASES,
    after=FINAL_NORM,
    fields=SIZES + RMS_NORM,
    features=(HEADS, ATTENTION_BIAS, MLP_BIAS, rope("default", "linear", "yarn", "llama3")),
    constants=SILU,
    defaults=sizes(32000, 4096, 11008, 32, 32, None, 2048)
    | {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False},
    owns=lambda values: not values.get("expert_count"),
)

MISTRAL = replace(
    LLAMA,
    model_type="mistral",
    defaults=sizes(32000, 4096, 14336, 32, 32, 8, 131072)
    | {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False},
    notes=("llama.cpp has no sliding window for mistral: texts longer than it attend to everything",),
)

MIXTRAL = replace(
    LLAMA,
    model_type="mixtral",
    blocks=(
        *PRE_NORMS[:1],
        *attention(QUERY_PAIRS, KEY_PAIRS, bias=False),
        *PRE_NORMS[1:],
        Tensor("mlp.gate.weight", "ffn_gate_inp.weight", older=("block_sparse_moe.gate.weight",)),
        Experts(
            gate_up="mlp.experts.gate_up_proj",
            down="mlp.experts.down_proj",
            each=(
                "block_sparse_moe.experts.{e}.w1.weight",
                "block_sparse_moe.experts.{e}.w3.weight",
                "block_sparse_moe.experts.{e}.w2.weight",
            ),
            count="num_local_experts",
        ),
    ),
    fields=(
        *SIZES,
        *RMS_NORM,
        Field("expert_count", "num_local_experts", older=("num_experts",)),
        Field("expert_used_count", "num_experts_per_tok"),
    ),
    features=(HEADS, rope("default", "linear", "yarn", "llama3")),
    defaults=sizes(32000, 4096, 14336, 32, 32, 8, 131072)
    | {"rms_norm_eps": 1e-5, "rope_theta": 1e6, "tie_word_embeddings": False}
    | {"num_local_experts": 8, "num_experts_per_tok": 2},
    owns=lambda values: bool(values.get("expert_count")),
    notes=MISTRAL.notes,
)

QWEN2 = replace(
    LLAMA,
    model_type="qwen2",
    gguf="qwen2",
    blocks=PRE_NORMS[:1] + attention(bias=True) + PRE_NORMS[1:] + MLP,
    features=(HEADS, rope("default", "linear", "yarn")),
    constants=SILU | {"use_sliding_window": (False,)},
    defaults=sizes(151936, 4096, 22016, 32, 32, 32, 32768)
    | {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False},
    owns=lambda _: True,
)

QWEN3 = replace(
    QWEN2,
    model_type="qwen3",
    gguf="qwen3",
    blocks=PRE_NORMS[:1] + attention() + OUTPUT_BIAS + HEAD_NORMS + PRE_NORMS[1:] + MLP,
    features=(HEADS, ATTENTION_BIAS, rope("default", "linear", "yarn")),
    defaults=QWEN2.defaults | {"head_dim": 128},
)

QWEN2_MOE = replace(
    QWEN2,
    model_type="qwen2_moe",
    gguf="qwen2moe",
    head="always",
    blocks=(
        *PRE_NORMS[:1],
        *attention(),
        *PRE_NORMS[1:],
        Tensor("mlp.gate.weight", "ffn_gate_inp.weight"),
        QWEN_EXPERTS,
        Tensor("mlp.shared_expert_gate.weight", "ffn_gate_inp_shexp.weight", RowAsVector()),
        Tensor("mlp.shared_expert.gate_proj.weight", "ffn_gate_shexp.weight"),
        Tensor("mlp.shared_expert.up_proj.weight", "ffn_up_shexp.weight"),
        Tensor("mlp.shared_expert.down_proj.weight", "ffn_down_shexp.weight"),
    ),
    fields=(
        *SIZES,
        *RMS_NORM,
        *EXPERT_COUNTS,
        Field("expert_feed_forward_length", "moe_intermediate_size"),
        Field("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
    ),
    features=(HEADS, biases("qkv_bias", "blk.0.attn_q.bias"), ALL_SPARSE, rope("default", "linear", "yarn")),
    constants=QWEN2.constants | {"norm_topk_prob": (False,)},
    defaults=sizes(151936, 2048, 5632, 24, 16, 16, 32768)
    | {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False}
    | {"moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632}
    | {"num_experts": 60, "num_experts_per_tok": 4, "norm_topk_prob": False},
)

QWEN3_MOE = replace(
    QWEN2,
    model_type="qwen3_moe",
    gguf="qwen3moe",
    blocks=(
        *PRE_NORMS[:1],
        *attention(),
        *OUTPUT_BIAS,
        *HEAD_NORMS,
        *PRE_NORMS[1:],
        Tensor("mlp.gate.weight", "ffn_gate_inp.weight"),
        QWEN_EXPERTS,
    ),
    fields=(
        *SIZES,
        *RMS_NORM,
        *EXPERT_COUNTS,
        Field("expert_feed_forward_length", "moe_intermediate_size"),
    ),
    features=(HEADS, ATTENTION_BIAS, ALL_SPARSE, rope("default", "linear", "yarn")),
    constants=QWEN2.constants | {"norm_topk_prob": (True,)},
    defaults=sizes(151936, 2048, 6144, 24, 32, 4, 32768)
    | {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False}
    | {"moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": False},
)

GEMMA = Architecture(
    model_type="gemma",
    embedding_factor=lambda config: float(config["hidden_size"]) ** 0.5,
    gguf="gemma",
    before=EMBEDDING,
    blocks=(
        Tensor("input_layernorm.weight", "attn_norm.weight", ONE_PLUS),
        *attention(bias=False),
        Tensor("post_attention_layernorm.weight", "ffn_norm.weight", ONE_PLUS),
        *MLP,
    ),
    after=(Tensor("model.norm.weight", "output_norm.weight", ONE_PLUS),),
    head="never",
    fields=SIZES + RMS_NORM,
    features=(HEADS, rope("default", "linear", "yarn")),
    # The first gemma configs say "gelu" and mean the tanh form: transformers overrides it.
    constants={"hidden_act": (*GELU_TANH, "gelu"), "use_bidirectional_attention": (None, False)},
    defaults=sizes(256000, 3072, 24576, 28, 16, 16, 8192)
    | {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": True, "head_dim": 256},
)

SANDWICH_NORMS = (
    Tensor("post_attention_layernorm.weight", "post_attention_norm.weight", ONE_PLUS),
    Tensor("pre_feedforward_layernorm.weight", "ffn_norm.weight", ONE_PLUS),
    Tensor("post_feedforward_layernorm.weight", "post_ffw_norm.weight", ONE_PLUS),
)
GEMMA_ACT = {"hidden_activation": GELU_TANH, "use_bidirectional_attention": (None, False)}

GEMMA2 = replace(
    GEMMA,
    model_type="gemma2",
    gguf="gemma2",
    blocks=GEMMA.blocks[:1] + attention(bias=False) + SANDWICH_NORMS + MLP,
    fields=(
        *SIZES,
        *RMS_NORM,
        Field("attn_logit_softcapping", "attn_logit_softcapping", float),
        Field("final_logit_softcapping", "final_logit_softcapping", float),
    ),
    features=(HEADS, SOFT_CAPS, sliding_window(2), gemma_scale(46), rope("default")),
    constants=GEMMA_ACT,
    defaults=sizes(256000, 2304, 9216, 26, 8, 4, 8192)
    | {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": True, "head_dim": 256}
    | {"sliding_window": 4096, "query_pre_attn_scalar": 256, "hidden_activation": "gelu_pytorch_tanh"}
    | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
)

GEMMA3_TEXT = replace(
    GEMMA,
    model_type="gemma3_text",
    gguf="gemma3",
    head="untied",
    blocks=(
        *GEMMA.blocks[:1],
        *attention(bias=False),
        Tensor("self_attn.q_norm.weight", "attn_q_norm.weight", ONE_PLUS),
        Tensor("self_attn.k_norm.weight", "attn_k_norm.weight", ONE_PLUS),
        *SANDWICH_NORMS,
        *MLP,
    ),
    fields=(
        *SIZES,
        *RMS_NORM,
        Field("final_logit_softcapping", "final_logit_softcapping", float, optional=True),
    ),
    features=(
        HEADS,
        sliding_window(6),
        gemma_scale(62),
        rope_by_layer("default", "linear", "yarn", sliding_base=1e4),
    ),
    constants=GEMMA_ACT | {"attn_logit_softcapping": (None,)},
    defaults=sizes(262208, 2304, 9216, 26, 8, 4, 131072)
    | {"rms_norm_eps": 1e-6, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "tie_word_embeddings": True}
    | {"head_dim": 256, "sliding_window": 4096, "query_pre_attn_scalar": 256},
)

GEMMA3 = replace(  # text and images in one directory: the text part
    GEMMA3_TEXT,
    model_type="gemma3",
    sub_config="text_config",
    prefixes=(
        ("model.language_model.", "model."),
        ("language_model.model.", "model."),
        ("language_model.lm_head.", "lm_head."),
    ),
    ignored=(r"(model\.)?vision_tower\.", r"(model\.)?multi_modal_projector\."),
    owns=lambda _: False,
    notes=("only the text model goes into this file; llama.cpp takes the image tower from one of its own",),
)

PHI3 = replace(
    LLAMA,
    model_type="phi3",
    gguf="phi3",
    blocks=(
        *PRE_NORMS[:1],
        Tensor("self_attn.qkv_proj.weight", "attn_qkv.weight"),
        Tensor("self_attn.o_proj.weight", "attn_output.weight"),
        *PRE_NORMS[1:],
        Tensor("mlp.gate_up_proj.weight", "ffn_up.weight"),
        Tensor("mlp.down_proj.weight", "ffn_down.weight"),
    ),
    features=(HEADS, LONGROPE),
    defaults=sizes(32064, 3072, 8192, 32, 32, None, 4096)
    | {"rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False}
    | {"original_max_position_embeddings": 4096},
    owns=lambda _: True,
    notes=("llama.cpp has no sliding window for phi3: texts longer than it attend to everything",),
)

SMOLLM3 = replace(
    LLAMA,
    model_type="smollm3",
    gguf="smollm3",
    blocks=PRE_NORMS[:1] + attention(QUERY_PAIRS, KEY_PAIRS) + PRE_NORMS[1:] + MLP,
    features=(HEADS, EVERY_FOURTH_WITHOUT_ROPE, rope("default", "linear", "yarn")),
    constants=SILU | {"use_sliding_window": (False,), "attention_bias": (False,), "mlp_bias": (False,)},
    defaults=sizes(128256, 2048, 11008, 36, 16, 4, 32768)
    | {"rms_norm_eps": 1e-6, "rope_theta": 2e6, "tie_word_embeddings": True},
    owns=lambda _: True,
)

OLMO2 = replace(
    LLAMA,
    model_type="olmo2",
    gguf="olmo2",
    head="always",
    blocks=(
        *attention(bias=False),
        *HEAD_NORMS,
        Tensor("post_attention_layernorm.weight", "post_attention_norm.weight"),
        *MLP,
        Tensor("post_feedforward_layernorm.weight", "post_ffw_norm.weight"),
    ),
    features=(HEADS, rope("default", "linear", "yarn")),
    constants=SILU | {"attention_bias": (False,)},
    defaults=sizes(50304, 4096, 11008, 32, 32, None, 2048)
    | {"rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False},
    owns=lambda values: not values.get("attention.sliding_window"),
)

OLMO3 = replace(
    OLMO2,
    model_type="olmo3",
    features=(HEADS, sliding_window(4), rope_by_layer("default", "yarn")),
    defaults=OLMO2.defaults | {"rope_theta": 500000.0, "sliding_window": 4096},
    owns=lambda values: bool(values.get("attention.sliding_window")),
)

GRANITE_SCALES = (
    Field("attention.scale", "attention_multiplier", float),
    Field("embedding_scale", "embedding_multiplier", float),
    Field("residual_scale", "residual_multiplier", float),
    Field("logit_scale", "logits_scaling", float),
)
GRANITE_DEFAULTS = {
    "attention_multiplier": 1.0,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
}

GRANITE = replace(
    LLAMA,
    model_type="granite",
    gguf="granite",
    fields=SIZES + RMS_NORM + GRANITE_SCALES,
    defaults=LLAMA.defaults | GRANITE_DEFAULTS,
    owns=lambda _: True,
)

GRANITE_MOE = replace(
    GRANITE,
    model_type="granitemoe",
    gguf="granitemoe",
    blocks=(
        *PRE_NORMS[:1],
        *LLAMA_ATTENTION,
        *PRE_NORMS[1:],
        Tensor(
            "block_sparse_moe.router.weight",
            "ffn_gate_inp.weight",
            older=("block_sparse_moe.router.layer.weight",),
        ),
        Experts(
            gate_up="block_sparse_moe.experts.gate_up_proj",
            down="block_sparse_moe.experts.down_proj",
            fused_older=("block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight"),
            count="num_local_experts",
        ),
    ),
    fields=MIXTRAL.fields + GRANITE_SCALES,
    features=(HEADS, ATTENTION_BIAS, rope("default", "linear", "yarn", "llama3")),
    defaults=GRANITE.defaults | {"num_local_experts": 8, "num_experts_per_tok": 2},
)

ARCHITECTURES: tuple[Architecture, ...] = (
    LLAMA,
    MISTRAL,
    MIXTRAL,
    QWEN2,
    QWEN3,
    QWEN2_MOE,
    QWEN3_MOE,
    GEMMA,
    GEMMA2,
    GEMMA3_TEXT,
    GEMMA3,
    PHI3,
    SMOLLM3,
    OLMO2,
    OLMO3,
    GRANITE,
    GRANITE_MOE,
)
