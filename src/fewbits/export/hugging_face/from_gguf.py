"""config.json, tokenizer and generation settings of a Hugging Face directory, from a GGUF file's metadata."""

from __future__ import annotations

import json
from typing import Any

from fewbits.architectures import to_published
from fewbits.checkpoint.checkpoint import Checkpoint
from fewbits.checkpoint.gguf_tokenizer import GgufTokenizer, tokenizer_from_metadata
from fewbits.errors import ArchitectureError, MissingExtraError

_KIND = "tokenizer.ggml.model"
_WITHOUT = (None, "none", "no_vocab")
_DTYPES = {"F16": "float16", "F32": "float32"}


def config_from_gguf(checkpoint: Checkpoint) -> dict[str, Any]:
    """config.json's data as transformers has it.

    Raises:
        ArchitectureError: an architecture that transformers isn't known to have.
        MissingExtraError: transformers, which knows the names of classes, isn't installed.
    """
    config, tensors = to_published(checkpoint)
    dtype = _DTYPES.get(tensors["model.embed_tokens.weight"].dtype, "bfloat16")
    config |= {"architectures": [_class_name(config["model_type"])], "dtype": dtype, "torch_dtype": dtype}
    for kind, own in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        config[f"{kind}_token_id"] = checkpoint.metadata.get(f"tokenizer.ggml.{own}_token_id")
    return config


def _class_name(model_type: str) -> str:
    try:
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    except ImportError:
        raise MissingExtraError("transformers", "models", "Writing a directory from a GGUF file") from None
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ArchitectureError("this transformers has no model of the type", found=model_type)
    return str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])


def tokenizer_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json and generation_config.json; none if the file has no tokenizer.

    Raises:
        ArchitectureError: a kind of tokenizer that fewbits can't build.
        CheckpointError: its metadata contradict each other.
        MissingExtraError: the package tokenizers isn't installed.
    """
    if checkpoint.metadata.get(_KIND) in _WITHOUT:
        return {}
    made = tokenizer_from_metadata(checkpoint.metadata)
    _add_first_and_last(made)
    generation = {"bos_token_id": made.bos_id, "eos_token_id": sorted(made.eos_ids)}
    return {
        "tokenizer.json": (made.tokenizer.to_str(pretty=True) + "\n").encode(),
        "tokenizer_config.json": _json(_tokenizer_config(made)),
        "generation_config.json": _json(generation),
    }


def _add_first_and_last(made: GgufTokenizer) -> None:
    """Let the tokenizer put the tokens around a text that the model wants there."""
    from tokenizers.processors import TemplateProcessing

    first = made.bos_id if made.add_bos else None
    last = made.eos_id if made.add_eos else None
    texts = {token: made.tokenizer.id_to_token(token) for token in (first, last) if token is not None}
    if texts:
        before = [] if first is None else [texts[first]]
        after = [] if last is None else [texts[last]]
        made.tokenizer.post_processor = TemplateProcessing(
            single=[*before, "$A", *after],
            pair=[*before, "$A", *after, "$B", *after],
            special_tokens=[(text, token) for token, text in texts.items()],
        )


def _tokenizer_config(made: GgufTokenizer) -> dict[str, Any]:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    for name, token in (("bos_token", made.bos_id), ("eos_token", made.eos_id)):
        if token is not None:
            config[name] = made.tokenizer.id_to_token(token)
    if made.chat_template:
        templates = {"default": made.chat_template, **made.chat_templates}
        several = [{"name": name, "template": text} for name, text in templates.items()]
        config["chat_template"] = several if made.chat_templates else made.chat_template
    return config


def _json(data: dict[str, Any]) -> bytes:
    return (json.dumps({k: v for k, v in data.items() if v is not None}, indent=2) + "\n").encode()
