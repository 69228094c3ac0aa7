"""Which tokens begin, end, pad and separate, and the chat template, as GGUF metadata."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

# What transformers calls them, and the last part of llama.cpp's key (the missing "a" is theirs).
NAMED_TOKENS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",
    "pad_token": "padding_token_id",
    "mask_token": "mask_token_id",
}
# Tokens that end a turn rather than a document; the first that exists is the end of turn.
TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<turn|>", "<|end|>", "<end_of_utterance>")


class TemplateEnds(NamedTuple):
    """Token ids that the tokenizer puts before and after a text."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]


def token_text(value: Any) -> str | None:
    """Text of a token as tokenizer_config.json gives it: a string, or an object with `content`."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def named_tokens(settings: Mapping[str, Any]) -> list[str]:
    """Texts of every token that the settings name as special."""
    listed: Iterable[Any] = settings.get("extra_special_tokens") or ()
    if isinstance(listed, Mapping):  # {"image_token": "<image>"}
        listed = listed.values()
    values = [settings.get(name) for name in (*NAMED_TOKENS, "cls_token")]
    values += [*(settings.get("additional_special_tokens") or ()), *listed]
    return [text for text in map(token_text, values) if text]


def template_ends(post_processor: Mapping[str, Any] | None) -> TemplateEnds:
    """What the `post_processor` of a tokenizer.json adds around a single text.

    The post-processor decides, not `add_bos_token` in tokenizer_config.json: transformers ignores the latter
    where a tokenizer.json exists.
    """
    kind = post_processor.get("type") if post_processor else None
    if post_processor is None or kind is None:
        return TemplateEnds((), ())
    if kind == "Sequence":
        parts = [template_ends(part) for part in post_processor["processors"]]
        prefix = tuple(token for part in reversed(parts) for token in part.prefix)
        return TemplateEnds(prefix, tuple(token for part in parts for token in part.suffix))
    if kind in ("RobertaProcessing", "BertProcessing"):
        return TemplateEnds((post_processor["cls"][1],), (post_processor["sep"][1],))
    if kind != "TemplateProcessing":
        return TemplateEnds((), ())
    ends: tuple[list[int], list[int]] = ([], [])
    side = 0
    for item in post_processor["single"]:
        if "Sequence" in item:
            side = 1
        else:
            ends[side].extend(post_processor["special_tokens"][item["SpecialToken"]["id"]]["ids"])
    return TemplateEnds(tuple(ends[0]), tuple(ends[1]))


def special_ids(
    settings: Mapping[str, Any],
    configs: Iterable[Mapping[str, Any]],
    ends: TemplateEnds,
    ids: Mapping[str, int],
) -> dict[str, Any]:
    """Ids of the special tokens and what is added to a text.

    Args:
        settings: tokenizer_config.json.
        configs: config.json and generation_config.json, asked in this order for what the settings lack.
        ends: what the tokenizer puts around a text. llama.cpp can put one token on either side.
        ids: every token's id by its text; only those that the model has a row for.
    """
    configs = list(configs)
    found: dict[str, int] = {}
    known = set(ids.values())
    for name, key in NAMED_TOKENS.items():
        text = token_text(settings.get(name))
        candidates = [ids.get(text)] if text else []
        candidates += [first for config in configs for first in id_list(config.get(f"{name}_id"))[:1]]
        chosen = next((token for token in candidates if token in known), None)
        if chosen is not None:
            found[key] = chosen
    if len(ends.prefix) == 1:
        found["bos_token_id"] = ends.prefix[0]
    if len(ends.suffix) == 1:
        found["eos_token_id"] = ends.suffix[0]
    found.update(_turn_ends(configs, ids, found.get("eos_token_id")))
    metadata: dict[str, Any] = {f"tokenizer.ggml.{key}": token for key, token in found.items()}
    metadata["tokenizer.ggml.add_bos_token"] = len(ends.prefix) == 1
    metadata["tokenizer.ggml.add_eos_token"] = len(ends.suffix) == 1
    return metadata


def id_list(value: Any) -> list[int]:
    """An id, a list of ids or nothing, as a list."""
    values = value if isinstance(value, list) else [value]
    return [token for token in values if isinstance(token, int) and not isinstance(token, bool)]


def _turn_ends(
    configs: Iterable[Mapping[str, Any]], ids: Mapping[str, int], eos: int | None
) -> dict[str, int]:
    """Ids that end a turn or a tool call.

    llama.cpp otherwise picks one by its text, and which one is left to chance when there are several.
    """
    turn_end = next((ids[text] for text in TURN_ENDS if text in ids), None)
    if turn_end is None:
        stops = [token for config in configs for token in id_list(config.get("eos_token_id"))]
        turn_end = next((token for token in stops if token != eos and token in set(ids.values())), None)
    found = {} if turn_end is None else {"eot_token_id": turn_end}
    if "<|eom_id|>" in ids:
        found["eom_token_id"] = ids["<|eom_id|>"]
    return found


def chat_templates(directory: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Chat templates of a model directory, as metadata.

    Files of their own come before what tokenizer_config.json holds, as in transformers: chat_template.jinja,
    additional_chat_templates/NAME.jinja and chat_template.json (processors).
    """
    templates: dict[str, str] = {}
    inline = settings.get("chat_template")
    if isinstance(inline, str):
        templates["default"] = inline
    elif isinstance(inline, list):
        templates.update({entry["name"]: entry["template"] for entry in inline})
    json_file = directory / "chat_template.json"
    if json_file.is_file():
        held = json.loads(json_file.read_text(encoding="utf-8")).get("chat_template")
        templates.update({"default": held} if isinstance(held, str) else {})
    for file in sorted((directory / "additional_chat_templates").glob("*.jinja")):
        templates[file.stem] = file.read_text(encoding="utf-8")
    jinja_file = directory / "chat_template.jinja"
    if jinja_file.is_file():
        templates["default"] = jinja_file.read_text(encoding="utf-8")
    metadata: dict[str, Any] = {}
    default = templates.pop("default", None)
    if default is not None:
        metadata["tokenizer.chat_template"] = default
    named = {re.sub(r"[^A-Za-z0-9]", "_", name): template for name, template in templates.items()}
    metadata.update({f"tokenizer.chat_template.{name}": template for name, template in named.items()})
    if named:
        metadata["tokenizer.chat_templates"] = sorted(named)
    return metadata
