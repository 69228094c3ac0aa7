"""SentencePiece-like vocabularies: ▁ for a space, <0xXX> for bytes, and a score for every token.

llama.cpp's tokenizer for these joins the two neighbours whose union is the token with the highest score. A
tokenizer.json joins the pair with the lowest rank in a list. The two agree when every way to cut a token in
two tokens is in the list (which is how transformers converts a SentencePiece model), with
score = -(lowest rank that makes the token).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewbits.errors import ArchitectureError, CheckpointError

SPACE = "▁"
BYTE_TOKENS = tuple(f"<0x{value:02X}>" for value in range(256))
# A list of merges with a few pairs missing still comes from SentencePiece (pieces were renamed afterwards); a
# list that was learned from text lacks most of them.
MISSING_PAIRS = 0.01
TOKENS_CHECKED = 30_000  # of a larger vocabulary every second, third, … token, for speed


@dataclass(frozen=True)
class SentencePieceModel:
    """What tokenizer.model (a protobuf message) says.

    Attributes:
        pieces: texts by id.
        scores: by id.
        kinds: by id; SentencePiece numbers them as GGUF does: 1 normal, 2 unknown, 3 control, 4 user-defined,
            5 unused, 6 byte.
        algorithm: 1 unigram, 2 byte-pair encoding.
        add_space_prefix: a space is put before the text.
        remove_extra_spaces: runs of spaces are one space.
    """

    pieces: list[str]
    scores: list[float]
    kinds: list[int]
    algorithm: int
    add_space_prefix: bool
    remove_extra_spaces: bool


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read a tokenizer.model (sentencepiece_model.proto) without the protobuf package.

    Raises:
        CheckpointError: the file isn't one.
    """
    pieces: list[str] = []
    scores: list[float] = []
    kinds: list[int] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    try:
        for number, value in _fields(path.read_bytes()):
            if number == 1:  # SentencePiece: 1 piece, 2 score, 3 type
                piece = dict(_fields(value))
                pieces.append(piece[1].decode())
                scores.append(struct.unpack("<f", piece.get(2, b"\0\0\0\0"))[0])
                kinds.append(piece.get(3, 1))
            elif number == 2:  # TrainerSpec: 3 model_type
                trainer = dict(_fields(value))
            elif number == 3:  # NormalizerSpec: 3 add_dummy_prefix, 4 remove_extra_whitespaces
                normalizer = dict(_fields(value))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, struct.error) as error:
        raise CheckpointError("tokenizer.model can't be read", found=f"{path}: {error}") from error
    if not pieces:
        raise CheckpointError("tokenizer.model holds no tokens", found=path)
    return SentencePieceModel(
        pieces, scores, kinds, trainer.get(3, 1), bool(normalizer.get(3, 1)), bool(normalizer.get(4, 1))
    )


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Fields of a protobuf message in order: (number, int | bytes)."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire, length = tag & 7, {1: 8, 5: 4}.get(tag & 7)
        if wire == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if wire == 2:
            length, at = _varint(data, at)
        if length is None or at + length > len(data):
            raise ValueError(f"field {tag >> 3} reaches past the end")
        yield tag >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """An integer in groups of 7 bits, lowest first, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("integer of more than 64 bits")


def looks_like_sentencepiece(document: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json writes spaces as ▁ (else it is byte-level)."""
    steps = [document.get("normalizer"), document.get("pre_tokenizer")]
    return bool(document["model"].get("byte_fallback")) or SPACE in json.dumps(steps, ensure_ascii=False)


def adds_space_prefix(document: Mapping[str, Any]) -> bool:
    """Whether a space is put before the text, from the normalizer and the pre-tokenizer of tokenizer.json.

    Metaspace leaves a text that begins with a space as it is, and in its ``first`` scheme only the start of
    the whole text counts; llama.cpp puts a space before every stretch between special tokens.

    Raises:
        ArchitectureError: a step that llama.cpp doesn't do.
    """
    prefix, replaced = False, False
    for step in (*_flat(document.get("normalizer")), *_flat(document.get("pre_tokenizer"))):
        kind = step.get("type")
        if kind == "Prepend" and step.get("prepend") == SPACE:
            prefix = True
        elif kind == "Replace" and step.get("pattern") == {"String": " "} and step.get("content") == SPACE:
            replaced = True
        elif kind == "Metaspace" and step.get("replacement") == SPACE and not _cuts_words(step, document):
            replaced = True
            scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
            prefix = prefix or scheme != "never"
        elif not (kind == "Split" and step.get("pattern") == {"String": " "} and replaced):
            raise ArchitectureError(
                "llama.cpp's SentencePiece tokenizer has no such step",
                found=json.dumps(step, ensure_ascii=False),
                allowed="Prepend ▁, Replace ' ' by ▁, Metaspace",
            )
    return prefix


def _flat(step: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if step is None:
        return []
    if step.get("type") != "Sequence":
        return [step]
    parts: Iterable[Mapping[str, Any]] = step.get("normalizers") or step.get("pretokenizers") or ()
    return [flat for part in parts for flat in _flat(part)]


def _cuts_words(metaspace: Mapping[str, Any], document: Mapping[str, Any]) -> bool:
    """Whether Metaspace's cut before each ▁ matters: only where a token has a ▁ after its first letter."""
    vocab = document["model"]["vocab"]
    return bool(metaspace.get("split", True)) and any(SPACE in text[1:] for text in vocab)


def merge_pairs(merges: Sequence[Any]) -> list[tuple[str, str]]:
    """Merges as pairs; tokenizer.json holds either ``"a b"`` or ``["a", "b"]``."""
    if merges and isinstance(merges[0], str):
        return [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    return [(left, right) for left, right in merges]


def complete_pairs(texts: Iterable[str], vocab: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Every cut of one of the texts into two tokens."""
    for text in texts:
        for cut in range(1, len(text)):
            if text[:cut] in vocab and text[cut:] in vocab:
                yield text[:cut], text[cut:]


def scores_of_merges(
    vocab: Mapping[str, int], merges: Sequence[Any], added: set[str]
) -> dict[str, float] | None:
    """Score of each of the model's own tokens, or None where scores can't say what the merges do.

    Args:
        vocab: the model's own tokens.
        merges: of the tokenizer.json, in order.
        added: texts that are looked for in the text as it stands; no merge needs to make them.
    """
    pairs = merge_pairs(merges)
    known = set(pairs)
    own = [text for text in vocab if text not in added]
    needed = list(complete_pairs(own[:: 1 + len(own) // TOKENS_CHECKED], vocab))
    if sum(pair not in known for pair in needed) > MISSING_PAIRS * len(needed):
        return None
    scores: dict[str, float] = {}
    for rank, (left, right) in enumerate(pairs):
        scores.setdefault(left + right, float(-rank))
    lowest = float(-len(pairs))
    return {text: scores.get(text, lowest) for text in vocab}
