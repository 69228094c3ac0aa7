"""The list of tokens of a GGUF file: one text and one type for every row of the embedding."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from fewbits.errors import CheckpointError
from fewbits.export.gguf.special_tokens import named_tokens

logger = logging.getLogger(__name__)


class TokenType(IntEnum):
    """Values of `tokenizer.ggml.token_type` (llama.h, llama_token_type)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3  # found in a text only when special tokens are looked for; not shown when decoding
    USER_DEFINED = 4  # found in every text before anything else, and shown
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class AddedToken:
    """A token outside the model proper, found in the text as it stands."""

    text: str
    id: int
    special: bool
    strips: bool


@dataclass
class Vocabulary:
    """Tokens by id.

    Attributes:
        texts: by id; ``[PADi]`` where no token has the id.
        types: by id.
        added: ids that aren't the model's own, or that are looked for in the text as it stands.
    """

    texts: list[str]
    types: list[int]
    added: dict[int, AddedToken] = field(default_factory=dict)

    def ids(self) -> dict[str, int]:
        """Ids by text, holes left out."""
        return {
            text: token
            for token, (text, kind) in enumerate(zip(self.texts, self.types, strict=True))
            if kind != TokenType.UNUSED
        }


def added_tokens(
    document: Mapping[str, Any], settings: Mapping[str, Any], vocab: Mapping[str, int]
) -> list[AddedToken]:
    """Added tokens of tokenizer.json, then those that only tokenizer_config.json knows.

    Where both know a token, tokenizer_config.json has the last word on its flags, and a token that it names
    as special (`bos_token` and so on) is special, as in transformers.
    """
    entries = {entry["content"]: dict(entry) for entry in document.get("added_tokens") or ()}
    for number, entry in (settings.get("added_tokens_decoder") or {}).items():
        entries[entry["content"]] = {"id": int(number), **entries.get(entry["content"], {}), **entry}
    for text in named_tokens(settings):
        if text in entries:
            entries[text]["special"] = True
        elif text in vocab:
            entries[text] = {"content": text, "id": vocab[text], "special": True}
    return [
        AddedToken(
            text,
            vocab.get(text, entry["id"]),  # a text that the model has keeps the model's id
            bool(entry.get("special")),
            any(entry.get(flag) for flag in ("lstrip", "rstrip", "single_word")),
        )
        for text, entry in entries.items()
    ]


def assemble(vocab: Mapping[str, int], added: Iterable[AddedToken], size: int | None) -> Vocabulary:
    """Put every token in its row, and `[PADi]` in rows without one.

    Args:
        vocab: the model's own tokens, text to id.
        added: tokens found in the text as it stands; their type is control or user-defined.
        size: rows of the embedding; None: as many as there are tokens.

    Raises:
        CheckpointError: two tokens with one id, or a token of the model's own without a row.
    """
    added = list(added)
    rows = 1 + max([*vocab.values(), *(token.id for token in added)], default=-1)
    size = rows if size is None else size
    texts: list[str | None] = [None] * max(rows, size)
    types = [int(TokenType.NORMAL)] * len(texts)
    for text, token in vocab.items():
        if texts[token] is not None:
            _refuse_double(token, texts[token], text)
        texts[token] = text
    for entry in added:
        if texts[entry.id] not in (None, entry.text):
            _refuse_double(entry.id, texts[entry.id], entry.text)
        texts[entry.id] = entry.text
        types[entry.id] = TokenType.CONTROL if entry.special else TokenType.USER_DEFINED
    kept = {entry.id: entry for entry in added if entry.id < size}
    _refuse_surplus(texts, {entry.id for entry in added}, size)
    present = set(filter(None, texts))
    for token in range(size):
        if texts[token] is None:
            types[token] = TokenType.UNUSED
            texts[token] = _hole(token, present)
    return Vocabulary([text or "" for text in texts[:size]], types[:size], kept)


def _hole(token: int, present: set[str]) -> str:
    """A text for a row without a token, different from every token's."""
    text = f"[PAD{token}]"
    while text in present:
        text += "_"
    return text


def _refuse_double(token: int, first: str | None, second: str) -> None:
    raise CheckpointError("two tokens have the same id", found=f"{first!r} and {second!r} with id {token}")


def _refuse_surplus(texts: list[str | None], added: set[int], size: int) -> None:
    surplus = [token for token in range(size, len(texts)) if texts[token] is not None]
    own = [token for token in surplus if token not in added]
    if own:
        raise CheckpointError(
            "the tokenizer has more tokens than the model has embedding rows",
            found=f"id {own[-1]} ({texts[own[-1]]!r})",
            allowed=f"ids below {size} (vocab_size in config.json)",
            action="Check that tokenizer and model belong together",
        )
    if surplus:
        shown = ", ".join(repr(texts[token]) for token in surplus[:5])
        logger.warning(
            "%d added tokens have no embedding row and are left out: %s%s",
            *(len(surplus), shown, ", …" if len(surplus) > 5 else ""),
        )
