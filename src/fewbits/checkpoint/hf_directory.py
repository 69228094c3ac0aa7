"""Reading a Hugging Face directory: config.json and one or several safetensors files."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fewbits.checkpoint.byte_range import unreadable
from fewbits.checkpoint.checkpoint import Checkpoint, LazyTensor
from fewbits.checkpoint.fp8 import apply_scales
from fewbits.checkpoint.safetensors import read_safetensors_header
from fewbits.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# What a directory holds besides weights and config that changes what the model does.
COMPANIONS = (
    "generation_config.json",
    "tokenizer*.json",
    "tokenizer*.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.tiktoken",
    "chat_template*",
    "additional_chat_templates/*.jinja",
)

_SHARD_NAME = re.compile(r".+-\d{5}-of-(\d{5})\.safetensors")
# The last is MLX's.
_QUANTIZATION_KEYS = ("quantization_config", "compression_config", "quantization")
_COMPRESSED_TENSORS = "compressed-tensors"  # a quant_method
_FP8_METHODS = ("fp8", "fbgemm_fp8")  # values of quant_method
# of GPTQ and AWQ, compressed-tensors, bitsandbytes 4-bit and 8-bit
_PACKED_SUFFIXES = (".qweight", ".weight_packed", ".weight.absmax", ".SCB")


def read_hf_directory(directory: Path, weights: Path | None = None) -> Checkpoint:
    """The tensors of a directory (or of one file in it) as they are stored, scales and all.

    Args:
        directory: where config.json is looked for.
        weights: one safetensors file, or an index; default: what the directory holds.

    Raises:
        CheckpointError: a shard is missing, damaged, or lacks tensors that the index promises.
    """
    path = weights if weights and weights.name != SINGLE else directory
    weights = weights or _weights_of(directory)
    files, index = ([weights], {}) if weights.suffix == ".safetensors" else _indexed(weights)
    if match := _SHARD_NAME.fullmatch(weights.name):
        raise CheckpointError(
            f"{weights} is one shard of {int(match[1])}",
            found=weights.name,
            action="Name the directory instead, so that all shards are read.",
        )
    tensors: dict[str, LazyTensor] = {}
    metadata: dict[str, str] = {}
    for file in files:
        header = read_safetensors_header(file)
        metadata = header.metadata | metadata
        for name, tensor in header.tensors.items():
            if name in tensors:
                raise CheckpointError(
                    f"the tensor {name} is in two shards of {directory}",
                    found=f"{tensors[name].path.name} and {file.name}",  # type: ignore[attr-defined]
                    action="The shards don't belong together: download the model again.",
                )
            tensors[name] = tensor
    for name, shard in index.items():
        if name not in tensors:
            raise CheckpointError(
                f"{weights.name} says that {shard} holds the tensor {name}",
                found=f"no such tensor in {directory / shard}",
                action="Index and shards don't belong together: download the model again.",
            )
    config, warnings = _config(directory)
    return Checkpoint(
        path=path,
        container="safetensors",
        tensors=tensors,
        files=tuple(files),
        config=config,
        metadata=metadata,
        warnings=warnings,
    )


def interpret(stored: Checkpoint) -> Checkpoint:
    """The model's weights: packed ones unpacked, FP8 scales applied and taken out; other kinds refused.

    Raises:
        CheckpointError: the weights are packed in a way that only their own runtime reads.
    """
    method = quantization_method(stored)
    if (unpacked := unpacked_weights(stored)) is not None:
        from fewbits.checkpoint.packed import warning_of

        return _unquantized(stored, unpacked, (warning_of(unpacked),))
    if method is not None and not _is_scaled_fp8(stored.config, method):
        raise CheckpointError(
            f"{stored.path} is already quantized in a format that fewbits doesn't read",
            found=method,
            allowed="F32, F16, BF16, or FP8 with scales; GGUF files of any type",
            action="Start from the original, unquantized model.",
        )
    return _unquantized(stored, *apply_scales(stored.tensors, stored.config))


def _unquantized(
    stored: Checkpoint, tensors: Mapping[str, LazyTensor], warnings: tuple[str, ...]
) -> Checkpoint:
    return replace(
        stored,
        tensors=tensors,
        config={k: v for k, v in stored.config.items() if k not in _QUANTIZATION_KEYS},
        warnings=(*stored.warnings, *(f"{stored.path.name}: {w}" for w in warnings)),
    )


def unpacked_weights(stored: Checkpoint) -> dict[str, LazyTensor] | None:
    """The tensors with packed weights as one tensor each; None unless all packed ones are in formats we know.

    Raises:
        CheckpointError: arrays of a weight are missing, or of another shape than its format says.
    """
    quantization = quantization_of(stored.config)
    if not quantization:
        return None
    from fewbits.checkpoint.packed import unpack_modules  # it imports the formats
    from fewbits.checkpoint.packed_readers import reader_for

    reader = reader_for(stored.config, quantization)
    return None if reader is None else unpack_modules(stored.tensors, reader)


def quantization_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config's description of how it is quantized; {} without one."""
    for key in _QUANTIZATION_KEYS:
        if isinstance(quantization := config.get(key), dict):
            return quantization
    return {}


def quantization_method(stored: Checkpoint) -> str | None:
    """How a directory's weights are quantized, by its config or its tensors' names; None if they aren't."""
    if quantization := quantization_of(stored.config):
        return str(quantization.get("quant_method", "an unnamed quantization_config"))
    packed = next((name for name in stored.tensors if name.endswith(_PACKED_SUFFIXES)), None)
    return f"a packed tensor {packed}" if packed else None


def _is_scaled_fp8(config: Mapping[str, Any], method: str) -> bool:
    quantization = quantization_of(config)
    if method == _COMPRESSED_TENSORS:
        groups = quantization.get("config_groups")
        layouts = [quantization.get("format")]
        layouts += (
            [g.get("format") for g in groups.values() if isinstance(g, dict)]
            if isinstance(groups, dict)
            else []
        )
        known = ("float-quantized", "dense", None)
        return all(layout in known for layout in layouts) and "float-quantized" in layouts
    return method in _FP8_METHODS or (method == "modelopt" and quantization.get("quant_algo") == "FP8")


def _weights_of(directory: Path) -> Path:
    for name in (INDEX, SINGLE):
        if (directory / name).is_file():
            return directory / name
    single = [p for p in sorted(directory.glob("*.safetensors")) if not p.name.startswith("consolidated")]
    if any(p.name.startswith("adapter_model") for p in single):
        raise CheckpointError(
            f"{directory} holds a LoRA adapter, not a model",
            found="adapter_model.safetensors",
            action="Merge it into its base model first (peft: merge_and_unload), then save_pretrained.",
        )
    if single and all(_SHARD_NAME.fullmatch(p.name) for p in single):
        raise CheckpointError(
            f"{directory} holds shards without their index",
            found=f"{len(single)} shards, no {INDEX}",
            action=f"Download {INDEX} into the same directory.",
        )
    if len(single) == 1:
        return single[0]
    raise CheckpointError(
        f"{directory} holds several safetensors files and nothing that says which is the model",
        found=", ".join(p.name for p in single[:8]),
        allowed=f"{INDEX} or {SINGLE}",
        action="Name one of the files instead of the directory.",
    )


def _indexed(index: Path) -> tuple[list[Path], dict[str, str]]:
    """Shards in order, and by tensor the shard that the index promises it in."""
    data = read_json(index)
    weight_map = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{index} is not an index",
            found=f"weight_map is {type(weight_map).__name__}",
            allowed="an object: tensor name -> file name",
            action="Download it again.",
        )
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or "/" in shard or "\\" in shard or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{index}: the shard of {name}",
                found=repr(shard)[:100],
                allowed="the name of a .safetensors file in the same directory",
                action="Don't use this model: its index points elsewhere.",
            )
    wanted = Counter(weight_map.values())
    for shard, count in sorted(wanted.items()):
        if not (index.parent / shard).exists():
            names = [name for name, file in weight_map.items() if file == shard]
            more = f" and {count - 3} more" if count > 3 else ""
            raise CheckpointError(
                f"the shard {shard} is missing from {index.parent}",
                found=f"{index.name} wants {count} tensors from it: {', '.join(names[:3])}{more}",
                action="Download the missing file into the same directory.",
            )
    return [index.parent / shard for shard in sorted(wanted)], weight_map


def _config(directory: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    path = directory / "config.json"
    if not path.is_file():
        return {}, (
            f"{directory} has no config.json: tensors can be read, but not what kind of model they are",
        )
    config = read_json(path)
    if not isinstance(config, dict):
        raise CheckpointError(
            f"{path} is not a model's config", found=type(config).__name__, allowed="an object"
        )
    return config, ()


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        CheckpointError: it can't be read or isn't JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not JSON", found=str(error)[:200], action="Download it again."
        ) from error
