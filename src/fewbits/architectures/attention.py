"""Settings of attention that need code: head sizes, biases, sliding windows, caps, blocks without rope."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fewbits.architectures.architecture import Config, Feature, refuse
from fewbits.architectures.rope import FULL, SLIDING, head_dim
from fewbits.architectures.settings import first
from fewbits.checkpoint.checkpoint import LazyTensor

Tensors = Mapping[str, LazyTensor]


def _head_write(config: Config) -> dict[str, Any]:
    kv = config.get("num_key_value_heads") or config["num_attention_heads"]
    width = head_dim(config)
    return {
        "attention.head_count": int(config["num_attention_heads"]),
        "attention.head_count_kv": int(kv),
        "attention.key_length": width,
        "attention.value_length": width,
    }


def _head_read(values: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    del tensors
    heads, kv = values["attention.head_count"], values.get("attention.head_count_kv")
    for name, value in (("head_count", heads), ("head_count_kv", kv)):
        if isinstance(value, list) and len(set(value)) > 1:
            raise refuse(f"transformers' model has one {name} for all blocks", value, "equal numbers")
    return {
        "num_attention_heads": first(heads),
        "num_key_value_heads": first(kv) or first(heads),
        "head_dim": values["attention.key_length"],
    }


HEADS = Feature(write=_head_write, read=_head_read)


def biases(key: str, tensor: str) -> Feature:
    """Biases that a config switches on with `key`; a GGUF file has them when it has `tensor`."""

    def read(values: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
        del values
        return {key: tensor in tensors}

    return Feature(read=read)


ATTENTION_BIAS = biases("attention_bias", "blk.0.attn_q.bias")
MLP_BIAS = biases("mlp_bias", "blk.0.ffn_up.bias")


def layer_kinds(config: Config, period: int) -> list[str]:
    """Kind of attention of each block; without a list, every `period`-th block has full attention."""
    if config.get("layer_types"):
        return list(config["layer_types"])
    every = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or period
    return [SLIDING if (b + 1) % every else FULL for b in range(config["num_hidden_layers"])]


def sliding_window(period: int) -> Feature:
    """Blocks with a sliding window, `period` - 1 of them before each with full attention, as in llama.cpp.

    Another arrangement is written block by block.
    """

    def write(config: Config) -> dict[str, Any]:
        kinds = layer_kinds(config, period)
        keys: dict[str, Any] = {"attention.sliding_window": int(config["sliding_window"])}
        if kinds != layer_kinds({"num_hidden_layers": len(kinds)}, period):
            keys["attention.sliding_window_pattern"] = [kind == SLIDING for kind in kinds]
        return keys

    def read(values: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
        del tensors
        blocks = values["block_count"]
        pattern = values.get("attention.sliding_window_pattern", period)
        if isinstance(pattern, list):
            kinds = [SLIDING if sliding else FULL for sliding in pattern[:blocks]]
        else:
            kinds = layer_kinds({"num_hidden_layers": blocks}, pattern)
        return {"sliding_window": values.get("attention.sliding_window", 4096), "layer_types": kinds}

    def check(config: Config) -> None:
        if not config.get("sliding_window"):
            raise refuse(
                "blocks with a sliding window need its width", config.get("sliding_window"), "a number"
            )

    return Feature(write=write, read=read, check=check)


def gemma_scale(large_blocks: int) -> Feature:
    """Gemma's attention scale: llama.cpp takes 1/√head_dim, but 1/√(hidden/heads) in the largest model.

    Args:
        large_blocks: number of blocks by which llama.cpp recognises the largest model.
    """

    def scalar(config: Config) -> int:
        if config["num_hidden_layers"] == large_blocks:
            return int(config["hidden_size"] // config["num_attention_heads"])
        return head_dim(config)

    def check(config: Config) -> None:
        found = config.get("query_pre_attn_scalar")
        if found is not None and found != scalar(config):
            raise refuse("query_pre_attn_scalar has no key in GGUF", found, scalar(config))

    def read(values: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
        del tensors
        config = {
            "num_hidden_layers": values["block_count"],
            "hidden_size": values["embedding_length"],
            "num_attention_heads": first(values["attention.head_count"]),
            "head_dim": values["attention.key_length"],
        }
        return {"query_pre_attn_scalar": scalar(config)}

    return Feature(check=check, read=read)


def _positive_caps(config: Config) -> None:
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if not config.get(key):
            raise refuse(f"{key} can't be switched off", config.get(key), "a positive number")


SOFT_CAPS = Feature(check=_positive_caps)


def _every_fourth(config: Config) -> list[int]:
    """Which blocks rotate (1) in llama.cpp's smollm3: all but every fourth."""
    return [int((b + 1) % 4 != 0) for b in range(config["num_hidden_layers"])]


def _check_nope(config: Config) -> None:
    step = config.get("no_rope_layer_interval") or 4
    default = [int((b + 1) % step != 0) for b in range(config["num_hidden_layers"])]
    found = config.get("no_rope_layers") or default
    if list(found) != _every_fourth(config):
        raise refuse("blocks without rope other than every fourth", found, _every_fourth(config))


def _read_nope(values: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    del tensors
    return {"no_rope_layers": _every_fourth({"num_hidden_layers": values["block_count"]})}


EVERY_FOURTH_WITHOUT_ROPE = Feature(check=_check_nope, read=_read_nope)


def _check_sparse(config: Config) -> None:
    dense = config.get("mlp_only_layers") or []
    step = config.get("decoder_sparse_step") or 1
    if dense or step != 1:
        raise refuse("blocks without experts", f"step {step}, dense blocks {dense}", "experts in every block")


ALL_SPARSE = Feature(check=_check_sparse)
