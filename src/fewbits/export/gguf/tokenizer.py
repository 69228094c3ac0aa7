"""A Hugging Face tokenizer as GGUF metadata that llama.cpp tokenizes with alike.

Reads plain JSON: neither transformers nor (but for one rare check) the tokenizers package is needed.

Where llama.cpp can't do what the tokenizer does, and nothing in a GGUF file can change it:
- Unicode normalization (NFC) isn't done: text that isn't in NFC gets other tokens.
- Added tokens take no white space with them (`lstrip`, `rstrip`) unless `general.name` contains "phi-3".
- A byte-level vocabulary without some bytes drops them; neighbours of a dropped byte aren't merged.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewbits.checkpoint.pre_tokenizers import PreTokenizer
from fewbits.errors import ArchitectureError, CheckpointError
from fewbits.export.gguf.pre_tokenizers import recognise
from fewbits.export.gguf.sentencepiece import (
    BYTE_TOKENS,
    SPACE,
    SentencePieceModel,
    adds_space_prefix,
    looks_like_sentencepiece,
    merge_pairs,
    read_sentencepiece,
    scores_of_merges,
)
from fewbits.export.gguf.special_tokens import (
    TemplateEnds,
    chat_templates,
    special_ids,
    template_ends,
)
from fewbits.export.gguf.vocabulary import AddedToken, TokenType, Vocabulary, added_tokens, assemble

logger = logging.getLogger(__name__)


def tokenizer_metadata(directory: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that a GGUF file says about the tokenizer and the chat template.

    Args:
        directory: of the Hugging Face model: tokenizer.json or tokenizer.model, tokenizer_config.json, …
        config: its config.json; `vocab_size` is the number of embedding rows.

    Returns:
        `tokenizer.ggml.*` and `tokenizer.chat_template*`: strings, ints, bools, and lists of str
        (tokens, merges), of int (token_type, int32) and of float (scores, float32).

    Raises:
        ArchitectureError: llama.cpp has no tokenizer that does the same.
        CheckpointError: files are missing, or contradict each other.
    """
    settings = _settings(directory)
    document = _read_json(directory / "tokenizer.json")
    size = config.get("vocab_size", (config.get("text_config") or {}).get("vocab_size"))
    model_file = directory / "tokenizer.model"
    if document:
        metadata, vocabulary = _from_document(document, settings, size, model_file)
        ends = template_ends(document.get("post_processor"))
    elif model_file.is_file():
        metadata, vocabulary = _from_sentencepiece(read_sentencepiece(model_file), settings, size)
        ends = _sentencepiece_ends(settings, vocabulary.ids())
    else:
        raise CheckpointError(
            "the tokenizer is missing",
            found=f"neither tokenizer.json nor tokenizer.model in {directory}",
            action="Write one with transformers: AutoTokenizer.from_pretrained(…).save_pretrained(…)",
        )
    if len(ends.prefix) > 1 or len(ends.suffix) > 1:
        logger.warning("llama.cpp can put one token before and after a text; %s are left out", list(ends))
    _warn_of_stripping(vocabulary)
    configs = (config, _read_json(directory / "generation_config.json"))
    metadata.update(special_ids(settings, configs, ends, vocabulary.ids()))
    return metadata | chat_templates(directory, settings)


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object, {} where there is no file."""
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path.name} isn't JSON", found=error) from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path.name} must hold a JSON object", found=type(document).__name__)
    return document


def _settings(directory: Path) -> dict[str, Any]:
    """tokenizer_config.json, with what older models keep in special_tokens_map.json."""
    older = _read_json(directory / "special_tokens_map.json")
    settings = _read_json(directory / "tokenizer_config.json")
    return older | {key: value for key, value in settings.items() if value is not None}


def _from_document(
    document: Mapping[str, Any], settings: Mapping[str, Any], size: int | None, model_file: Path
) -> tuple[dict[str, Any], Vocabulary]:
    model = document.get("model") or {}
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind != "BPE":
        raise ArchitectureError(
            "fewbits can't write this kind of tokenizer to GGUF", found=kind, allowed="BPE (tokenizer.json)"
        )
    vocab: dict[str, int] = model["vocab"]
    added = added_tokens(document, settings, vocab)
    vocabulary = assemble(vocab, added, size)
    if not looks_like_sentencepiece(document):
        return _byte_level(document, vocabulary), vocabulary
    prefix = adds_space_prefix(document)
    _require_bytes(vocab)
    scores = scores_of_merges(vocab, model["merges"], {entry.text for entry in added})
    if scores is None and model_file.is_file():
        trained = read_sentencepiece(model_file)
        scores = dict(zip(trained.pieces, trained.scores, strict=True))
    if scores is None:
        return _plain_merges(document, vocabulary, prefix), vocabulary
    _mark_sentencepiece_types(vocabulary, vocab, model.get("unk_token"))
    by_id = [scores.get(text, 0.0) if text in vocab else 0.0 for text in vocabulary.texts]
    return _sentencepiece_metadata(vocabulary, by_id, prefix), vocabulary


def _byte_level(document: Mapping[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    """Metadata of GPT-2's kind of tokenizer: merges over an alphabet with one letter per byte."""
    normalizer = document.get("normalizer")
    if normalizer is not None and normalizer.get("type") != "NFC":
        raise ArchitectureError(
            "llama.cpp doesn't normalize text for this kind of tokenizer",
            found=json.dumps(normalizer, ensure_ascii=False),
            allowed="none, NFC",
        )
    model = document["model"]
    whole_words = bool(model.get("ignore_merges"))
    pre_tokenizer = recognise(document.get("pre_tokenizer"), ignore_merges=whole_words)
    if pre_tokenizer.ignore_merges != whole_words:
        _warn_of_unreachable(model, pre_tokenizer)
    # A piece with a real space in it can't come up: the alphabet writes a space as Ġ.
    merges = [pair for pair in merge_pairs(model["merges"]) if " " not in pair[0] + pair[1]]
    return _merge_metadata(pre_tokenizer.name, vocabulary, merges)


def _merge_metadata(pre: str, vocabulary: Vocabulary, merges: Sequence[tuple[str, str]]) -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": vocabulary.texts,
        "tokenizer.ggml.token_type": [int(kind) for kind in vocabulary.types],
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in merges],
    }


def _warn_of_unreachable(model: Mapping[str, Any], pre_tokenizer: PreTokenizer) -> None:
    """Say which words get other tokens when llama.cpp and the tokenizer differ in `ignore_merges`."""
    from tokenizers import Tokenizer, models

    bpe = models.BPE(dict(model["vocab"]), merge_pairs(model["merges"]), ignore_merges=False)
    texts = list(model["vocab"])
    encodings = Tokenizer(bpe).encode_batch(texts, add_special_tokens=False)
    cut = [text for text, encoding in zip(texts, encodings, strict=True) if len(encoding.ids) > 1]
    if cut:
        logger.warning(
            "%d tokens, such as %r, can't be made by merges; llama.cpp's %s treats them otherwise than the "
            "tokenizer does (ignore_merges)",
            *(len(cut), cut[0], pre_tokenizer.name),
        )


def _require_bytes(vocab: Mapping[str, int]) -> None:
    missing = [
        text
        for value, text in enumerate(BYTE_TOKENS)
        if text not in vocab and not (value < 128 and chr(value) in vocab)
    ]
    if missing:
        raise ArchitectureError(
            "llama.cpp needs a token for every byte to write what the vocabulary lacks",
            found=f"{len(missing)} of 256 missing, {missing[0]} first",
            allowed="<0x00> … <0xFF>",
        )


def _plain_merges(document: Mapping[str, Any], vocabulary: Vocabulary, prefix: bool) -> dict[str, Any]:
    """Metadata for merges that were learned rather than derived from scores.

    llama.cpp's `sarvam-moe` merges plain text with ▁ for spaces, one line at a time.
    """
    lines = [text for text in document["model"]["vocab"] if "\n" in text and text.strip("\n")]
    if prefix or lines:
        raise ArchitectureError(
            "this tokenizer's merges can't be written as SentencePiece scores",
            found="merges learned from text, "
            + ("with a space put before the text" if prefix else f"with tokens across lines: {lines[0]!r}"),
            allowed="merges converted from a SentencePiece model, or a tokenizer.model beside tokenizer.json",
        )
    return _merge_metadata("sarvam-moe", vocabulary, merge_pairs(document["model"]["merges"]))


def _mark_sentencepiece_types(vocabulary: Vocabulary, vocab: Mapping[str, int], unknown: str | None) -> None:
    """Give bytes and the unknown token their types, in place.

    An added token such as ▁▁ that the model has as well is a normal one: in a text, which has no ▁, only
    merges make it.
    """
    for text in BYTE_TOKENS:
        if text in vocab:
            vocabulary.types[vocab[text]] = TokenType.BYTE
    for token, entry in vocabulary.added.items():
        if SPACE in entry.text and entry.text in vocab and not entry.special:
            vocabulary.types[token] = TokenType.NORMAL
    if unknown is not None and unknown in vocab:
        vocabulary.types[vocab[unknown]] = TokenType.UNKNOWN


def _sentencepiece_metadata(vocabulary: Vocabulary, scores: list[float], prefix: bool) -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": vocabulary.texts,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": [int(kind) for kind in vocabulary.types],
        "tokenizer.ggml.add_space_prefix": prefix,
    }


def _from_sentencepiece(
    model: SentencePieceModel, settings: Mapping[str, Any], size: int | None
) -> tuple[dict[str, Any], Vocabulary]:
    """A directory that has only tokenizer.model; added tokens come from tokenizer_config.json."""
    if model.algorithm != 2:
        raise ArchitectureError(
            "fewbits can't write this kind of SentencePiece model to GGUF",
            found=f"model type {model.algorithm}",
            allowed="2 (BPE)",
        )
    vocab = {text: token for token, text in enumerate(model.pieces)}
    if len(vocab) != len(model.pieces):
        raise CheckpointError("tokenizer.model holds a token twice")
    _require_bytes(vocab)
    vocabulary = assemble(vocab, added_tokens({}, settings, vocab), size)
    unknown = next((text for text, kind in zip(model.pieces, model.kinds, strict=True) if kind == 2), None)
    for token, kind in enumerate(model.kinds):
        if kind != TokenType.NORMAL and token not in vocabulary.added:
            vocabulary.types[token] = kind
    _mark_sentencepiece_types(vocabulary, vocab, unknown)
    scores = [*model.scores, *[0.0] * len(vocabulary.texts)][: len(vocabulary.texts)]
    metadata = _sentencepiece_metadata(vocabulary, scores, model.add_space_prefix)
    return metadata | {"tokenizer.ggml.remove_extra_whitespaces": model.remove_extra_spaces}, vocabulary


def _sentencepiece_ends(settings: Mapping[str, Any], ids: Mapping[str, int]) -> TemplateEnds:
    """Without a tokenizer.json the settings decide; Llama and Gemma put the first token by default."""
    configured = special_ids(settings, (), TemplateEnds((), ()), ids)
    sides = (("bos", settings.get("add_bos_token", True)), ("eos", settings.get("add_eos_token", False)))
    found = [configured.get(f"tokenizer.ggml.{side}_token_id") if wanted else None for side, wanted in sides]
    prefix, suffix = (() if token is None else (int(token),) for token in found)
    return TemplateEnds(prefix, suffix)


def _warn_of_stripping(vocabulary: Vocabulary) -> None:
    stripping: list[AddedToken] = [entry for entry in vocabulary.added.values() if entry.strips]
    if stripping:
        logger.warning(
            "%d added tokens, such as %r, take white space with them or stand alone; llama.cpp does that "
            "only for models whose general.name contains 'phi-3'",
            *(len(stripping), stripping[0].text),
        )
