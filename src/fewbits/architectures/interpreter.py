"""Applies the table of architectures: a Hugging Face checkpoint as GGUF tensors and settings, and back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from fewbits.architectures.architecture import Architecture, Config, Source
from fewbits.architectures.settings import check_settings, first, read_settings
from fewbits.architectures.table import ARCHITECTURES
from fewbits.checkpoint.checkpoint import Checkpoint, Floats, LazyTensor
from fewbits.checkpoint.views import Renamed
from fewbits.errors import ArchitectureError

EMBEDDING = ("model.embed_tokens.weight", "token_embd.weight")
HEAD = ("lm_head.weight", "output.weight")
_BUFFERS = (r".*\.rotary_emb\.inv_freq", r".*\.(masked_bias|position_ids)")
_SHOWN = 8  # names that a message lists


class ComputedTensor(LazyTensor):
    """Numbers that follow from the config, float32."""

    dtype = "F32"

    def __init__(self, name: str, values: Floats) -> None:
        self.name, self.values, self.shape = name, values, values.shape

    def rows(self, start: int, stop: int) -> Floats:
        """Rows start … stop as float32 [stop - start, K]."""
        return self.values.reshape(self.matrix)[start:stop].copy()


def known_model_types() -> list[str]:
    """`model_type`s that can be written to GGUF from a Hugging Face directory."""
    return [entry.model_type for entry in ARCHITECTURES]


def architecture_of(config: Config) -> Architecture:
    """The entry for a config.json.

    Raises:
        ArchitectureError: there is none.
    """
    model_type = config.get("model_type")
    for entry in ARCHITECTURES:
        if entry.model_type == model_type:
            return entry
    raise ArchitectureError(
        "fewbits can't write this architecture to GGUF from a Hugging Face directory",
        found=f"model_type {model_type}",
        allowed=", ".join(known_model_types()),
        action="Give a GGUF file of the model as the source: those work for every architecture.",
    )


def text_config(entry: Architecture, config: Config) -> dict[str, Any]:
    """The text model's config with transformers' defaults filled in."""
    own = dict(config[entry.sub_config]) if entry.sub_config else dict(config)
    if entry.sub_config and "tie_word_embeddings" in config:
        own.setdefault("tie_word_embeddings", config["tie_word_embeddings"])
    for field in entry.fields:
        for older in field.older:
            if own.get(field.hf) is None and own.get(older) is not None:
                own[field.hf] = own[older]
    filled = entry.defaults | own
    filled["num_key_value_heads"] = filled.get("num_key_value_heads") or filled.get("num_attention_heads")
    for key in ("vocab_size", "num_attention_heads", "num_key_value_heads", *_required(entry)):
        value = filled.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ArchitectureError(
                f"config.json of this {entry.model_type} model has no usable {key}",
                found=value,
                allowed="a positive number",
            )
    return filled


def _required(entry: Architecture) -> list[str]:
    return [field.hf for field in entry.fields if not field.optional]


def gguf_tensors(checkpoint: Checkpoint) -> dict[str, LazyTensor]:
    """A Hugging Face checkpoint's tensors under llama.cpp's names, in file order.

    Reads nothing, but for embedding and head of a tied model that stores both.

    Raises:
        ArchitectureError: no entry, a config that llama.cpp can't express, or tensors missing or surplus.
    """
    entry = architecture_of(checkpoint.config)
    config = _checked_config(entry, checkpoint)
    source = Source(_relevant(entry, checkpoint.tensors))
    tensors: dict[str, LazyTensor] = {}
    for rule in entry.rules(config["num_hidden_layers"]):
        tensors.update(rule.to_gguf(source, config))
    tensors.update(_head(entry, config, source))
    _complain(entry, source, checkpoint)
    for feature in entry.features:
        for name, values in feature.tensors(config).items():
            tensors[name] = ComputedTensor(name, values)
    return tensors


def gguf_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """A Hugging Face checkpoint's settings as GGUF metadata, from its config alone.

    Raises:
        ArchitectureError: no entry, or a config that llama.cpp can't express.
    """
    entry = architecture_of(checkpoint.config)
    return settings_of(entry, _checked_config(entry, checkpoint))


def settings_of(entry: Architecture, config: Config) -> dict[str, Any]:
    """Metadata of a filled-in text config, prefix included."""
    settings: dict[str, Any] = {"vocab_size": int(config["vocab_size"])}
    for field in entry.fields:
        if config.get(field.hf) is not None:
            settings[field.gguf] = field.kind(config[field.hf])
    for feature in entry.features:
        settings |= feature.write(config)
    return {f"{entry.gguf}.{key}": value for key, value in settings.items()}


def _check_blocks(blocks: int, checkpoint: Checkpoint) -> None:
    """Refuse counts that can't be true before anything is done that many times."""
    if blocks > len(checkpoint.tensors):
        raise ArchitectureError(
            f"{checkpoint.path} doesn't have the blocks that it says",
            found=f"{len(checkpoint.tensors)} tensors",
            allowed=f"several for each of {blocks} blocks",
        )


def _checked_config(entry: Architecture, checkpoint: Checkpoint) -> dict[str, Any]:
    """The text model's config, complete, and one that llama.cpp can express."""
    config = text_config(entry, checkpoint.config)
    _check_blocks(config["num_hidden_layers"], checkpoint)
    for key, allowed in entry.constants.items():
        found = config.get(key, allowed[0])
        if found not in allowed:
            raise ArchitectureError(
                f"llama.cpp can't run this {entry.model_type} model: {key} is fixed there",
                found=found,
                allowed=" or ".join(map(str, allowed)),
            )
    for feature in entry.features:
        feature.check(config)
    settings_of(entry, config)
    return config


def _relevant(entry: Architecture, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Tensors of the text model under the names that the rules use."""
    ignored = re.compile("|".join((*_BUFFERS, *entry.ignored)))
    result: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        if not ignored.match(name):
            prefix, plain = next((p for p in entry.prefixes if name.startswith(p[0])), ("", ""))
            result[plain + name[len(prefix) :]] = tensor
    return result


def _head(entry: Architecture, config: Config, source: Source) -> Iterable[tuple[str, LazyTensor]]:
    """`output.weight`, if the file gets one.

    A checkpoint that says it is tied and holds a head that differs from the embedding isn't tied:
    transformers uses the head that it finds.
    """
    embedding, head = source.take(EMBEDDING[0], optional=True), source.take(HEAD[0], optional=True)
    tied = bool(config.get("tie_word_embeddings"))
    if tied and head is not None and embedding is not None:
        tied = _equal(head, embedding)
    if tied:
        head = embedding if entry.head == "always" else None
    elif head is None:
        source.missing.append(HEAD[0])
    elif entry.head == "never":
        raise ArchitectureError(
            f"llama.cpp runs {entry.model_type} models only with tied embeddings",
            found="a head that differs from the embedding",
        )
    return [] if head is None else [(HEAD[1], Renamed(head, HEAD[1]))]


def _equal(a: LazyTensor, b: LazyTensor) -> bool:
    elements = 1 << 20
    pairs = zip(a.chunks(elements), b.chunks(elements), strict=True)
    return a.shape == b.shape and all(np.array_equal(x, y) for x, y in pairs)


def _complain(entry: Architecture, source: Source, checkpoint: Checkpoint) -> None:
    for what, names in (("lacks tensors", source.missing), ("has surplus tensors", source.surplus())):
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            raise ArchitectureError(
                f"{checkpoint.path} {what} for a model of the type {entry.model_type}",
                found=", ".join(names[:_SHOWN]) + more,
                action="The file is damaged, or of a model that fewbits doesn't know."
                if checkpoint.container == "gguf"
                else "Check that config.json belongs to these weights.",
            )


def parameters_of_directory(checkpoint: Checkpoint, wanted: Iterable[str]) -> dict[str, LazyTensor]:
    """Those of transformers' parameters that a Hugging Face checkpoint holds, by the live model's names.

    Most have the same name in both. Experts that a checkpoint holds one by one are stacked by the table, if it has an
    entry for the model.
    """
    names = set(wanted)
    found = {name: tensor for name, tensor in checkpoint.tensors.items() if name in names}
    if len(found) < len(names):
        through = dict(_through_table(checkpoint))
        found |= {name: t for name, t in through.items() if name in names and name not in found}
    return found


def _through_table(checkpoint: Checkpoint) -> Iterator[tuple[str, LazyTensor]]:
    """Every tensor under GGUF's name and from there under the live model's, which the table knows."""
    try:
        entry = architecture_of(checkpoint.config)
        config = text_config(entry, checkpoint.config)
        source = Source(gguf_tensors(checkpoint))
    except ArchitectureError:
        return
    for rule in entry.rules(config["num_hidden_layers"]):
        yield from rule.to_hugging_face(source, config)
    for hf, gguf in (EMBEDDING, HEAD):
        if (tensor := source.take(gguf, optional=True)) is not None:
            yield hf, tensor


def to_published(checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, LazyTensor]]:
    """A GGUF checkpoint as the config and the tensors of a Hugging Face directory, as such models are published.

    As `to_hugging_face`, but for experts, which lie one by one, and for a tied head, which isn't there.
    """
    config, tensors = to_hugging_face(checkpoint, published=True)
    if config["tie_word_embeddings"]:
        tensors.pop(HEAD[0], None)
    return config, tensors


def to_hugging_face(
    checkpoint: Checkpoint, *, published: bool = False
) -> tuple[dict[str, Any], dict[str, LazyTensor]]:
    """A GGUF checkpoint as transformers' config and the state dict of its model.

    `AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))` has exactly the parameters of the
    second result, which are read lazily. A tied model's ``lm_head.weight`` is the embedding's tensor again.
    Divisors of rope frequencies (`rope_freqs.weight`) are in the config as a longrope with equal factors.

    Raises:
        ArchitectureError: no entry of the table for this architecture, or tensors missing or surplus.
    """
    entry = owner(checkpoint)
    values = read_settings(entry.gguf, checkpoint.metadata)
    check_settings(entry.gguf, values)
    _check_blocks(values["block_count"], checkpoint)
    config = _config_of(entry, values, checkpoint.tensors)
    source = Source(checkpoint.tensors)
    tensors: dict[str, LazyTensor] = {}
    for rule in entry.rules(values["block_count"]):
        tensors.update(
            rule.to_published(source, config) if published else rule.to_hugging_face(source, config)
        )
    head = source.take(HEAD[1], optional=True) or source.take(EMBEDDING[1])
    if head is not None:
        tensors[HEAD[0]] = Renamed(head, HEAD[0])
    for name in ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"):
        source.take(name, optional=True)  # read by the features
    _complain(entry, source, checkpoint)
    return config, tensors


def _config_of(
    entry: Architecture, values: Mapping[str, Any], tensors: Mapping[str, LazyTensor]
) -> dict[str, Any]:
    config: dict[str, Any] = {
        "model_type": entry.model_type,
        "vocab_size": tensors[EMBEDDING[1]].matrix[0] if EMBEDDING[1] in tensors else 0,
        "tie_word_embeddings": HEAD[1] not in tensors,
        "dtype": "float32",
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    for field in entry.fields:
        if field.gguf in values:
            config[field.hf] = field.kind(first(values[field.gguf]))
    config |= {key: allowed[0] for key, allowed in entry.constants.items()}
    for feature in entry.features:
        config |= feature.read(values, tensors)
    return config


def owner(checkpoint: Checkpoint) -> Architecture:
    """The entry for a GGUF file.

    Raises:
        ArchitectureError: there is none.
    """
    name = str(checkpoint.metadata.get("general.architecture"))
    values = read_settings(name, checkpoint.metadata)
    for entry in ARCHITECTURES:
        if entry.gguf == name and entry.owns(values):
            return entry
    raise ArchitectureError(
        "fewbits has no entry for this GGUF file's architecture, so transformers can't run it",
        found=name,
        allowed=", ".join(dict.fromkeys(entry.gguf for entry in ARCHITECTURES)),
    )
