"""The tokenizer that a GGUF file describes, without the Hugging Face directory it came from.

Gives the token ids that llama.cpp gives for the same file, so that what fewbits measures on a file is what
llama.cpp would measure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fewbits.checkpoint.gguf_constants import ValueType
from fewbits.checkpoint.metadata_kinds import WORD, array, require, whole
from fewbits.checkpoint.pre_tokenizers import PreTokenizer, pre_tokenizer_named, steps_json
from fewbits.errors import ArchitectureError, CheckpointError, MissingExtraError

SPACE = "▁"
# Values of tokenizer.ggml.token_type (llama.h, llama_token_type).
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
# Tokens at which llama.cpp stops generating, whatever their type and whichever id is the file's eos.
END_TEXTS = frozenset(
    (
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>"),
        *("<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]"),
        *("<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "[e~["),
        # where a file ends in a prompt for filling in
        *("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>"),
        *("<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>"),
        "<｜end▁of▁sentence｜>",  # noqa: RUF001 - DeepSeek's
    )
)
_BYTE_PIECE = re.compile("<0x[0-9A-Fa-f]{2}>")
# GPT-2's letters for bytes: printable Latin-1 stands for itself, the rest for letters from U+0100 on.
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTE_OF_LETTER = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(0x100 + i): byte for i, byte in enumerate(_OTHERS)
}
# gpt-oss writes its structure with these, so llama.cpp shows them and finds them in every text.
ALWAYS_SHOWN = frozenset(("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"))


@dataclass(frozen=True)
class GgufTokenizer:
    """Text to token ids and back.

    Attributes:
        tokenizer: a `tokenizers.Tokenizer` without post-processor; it never adds tokens by itself.
        byte_level: letters of its tokens stand for bytes (GPT-2's way); else ▁ is a space, and <0xXX> a byte.
        bos_id: put before a text when `add_bos`; None if the file has none.
        eos_id: put after a text when `add_eos`; None if the file has none.
        eos_ids: every token that ends generation.
        chat_template: Jinja source, or None.
        chat_templates: further templates by name.
    """

    tokenizer: Any
    byte_level: bool
    bos_id: int | None
    eos_id: int | None
    eos_ids: frozenset[int]
    add_bos: bool
    add_eos: bool
    chat_template: str | None
    chat_templates: Mapping[str, str] = field(default_factory=dict)

    def encode(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of a text.

        Args:
            text: any text.
            add_special: put the first and last token around it, where the model wants them.
            parse_special: take control tokens such as ``<|im_end|>`` in the text for what they are, else
                for plain letters. User-defined tokens are found either way.
        """
        if self.tokenizer.encode_special_tokens == parse_special:
            # Set only when it differs: setting is what other threads can't encode beside.
            self.tokenizer.encode_special_tokens = not parse_special
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        if add_special and self.add_bos and self.bos_id is not None:
            ids = [self.bos_id, *ids]
        if add_special and self.add_eos and self.eos_id is not None:
            ids = [*ids, self.eos_id]
        return ids

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a prompt: begun as the model wants it, if the text (as chat templates do) doesn't begin so."""
        ids = self.encode(text, add_special=False)
        if self.add_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of token ids, control tokens left out unless `skip_special` is False."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=skip_special)
        return text

    def token_bytes(self, token: int) -> bytes:
        """What a token adds to a text, maybe a part of a character: UTF-8; of control tokens nothing.

        A text's bytes are its tokens' bytes in a row, but for the space that SentencePiece puts before a text.
        """
        if token in self._control_ids:
            return b""
        piece: str | None = self.tokenizer.id_to_token(token)
        if piece is None:  # the embedding may have more rows than the vocabulary
            return b""
        if self.byte_level:
            if all(letter in _BYTE_OF_LETTER for letter in piece):
                return bytes(_BYTE_OF_LETTER[letter] for letter in piece)
        elif _BYTE_PIECE.fullmatch(piece):
            return bytes.fromhex(piece[3:5])
        else:
            piece = piece.replace(SPACE, " ")
        return piece.encode("utf-8", "replace")

    @cached_property
    def added_tokens(self) -> frozenset[str]:
        """Texts of control tokens and user-defined tokens, which are found in a text as a whole."""
        return frozenset(entry.content for entry in self.tokenizer.get_added_tokens_decoder().values())

    @cached_property
    def control_tokens(self) -> Mapping[str, int]:
        """Ids of the tokens that aren't text, by name."""
        added = self.tokenizer.get_added_tokens_decoder()
        return {entry.content: token for token, entry in added.items() if entry.special}

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        return frozenset(self.control_tokens.values())


_ID = whole(0, 2**31 - 1)
_INTEGERS = (
    ValueType.INT32,
    ValueType.UINT32,
    ValueType.INT8,
    ValueType.UINT8,
    ValueType.INT16,
    ValueType.UINT16,
)
_KINDS = {
    "tokenizer.ggml.model": WORD,
    "tokenizer.ggml.pre": WORD,
    "tokenizer.ggml.tokens": array("texts", ValueType.STRING),
    "tokenizer.ggml.token_type": array("whole numbers", *_INTEGERS, ValueType.INT64, ValueType.UINT64),
    "tokenizer.ggml.scores": array("numbers", ValueType.FLOAT32, ValueType.FLOAT64, *_INTEGERS),
    "tokenizer.ggml.merges": array("texts", ValueType.STRING),
    "tokenizer.chat_template": WORD,
    "tokenizer.chat_templates": array("texts", ValueType.STRING),
    **{f"tokenizer.ggml.{name}_token_id": _ID for name in ("bos", "eos", "eot", "eom")},
}


def tokenizer_from_metadata(metadata: Mapping[str, Any]) -> GgufTokenizer:
    """Build the tokenizer from a GGUF file's key-value metadata.

    Raises:
        ArchitectureError: a kind of tokenizer that fewbits can't build.
        CheckpointError: keys are missing or contradict each other.
        MissingExtraError: the package `tokenizers` isn't installed.
    """
    require(metadata, _KINDS, CheckpointError)
    kind = metadata.get("tokenizer.ggml.model")
    texts = _texts(metadata)
    types = [int(value) for value in metadata.get("tokenizer.ggml.token_type", [NORMAL] * len(texts))]
    if len(types) < len(texts):
        raise CheckpointError("a GGUF file lacks token types", found=len(types), allowed=len(texts))
    types = [_type_in_use(text, value) for text, value in zip(texts, types, strict=False)]
    byte_level = False
    if kind == "llama":
        tokenizer = _from_scores(metadata, texts, types)
        adds_bos = True
    elif kind in ("gpt2", "gemma4"):
        pre_tokenizer = _pre_tokenizer(metadata, kind)
        tokenizer = _from_merges(metadata, texts, pre_tokenizer)
        adds_bos, byte_level = pre_tokenizer.adds_bos, pre_tokenizer.byte_level
    else:
        raise ArchitectureError(
            "fewbits can't build this kind of tokenizer from a GGUF file",
            found=kind,
            allowed="llama, gpt2, gemma4",
        )
    _add_tokens(tokenizer, texts, types, strips=_strips(metadata))
    eos_id = metadata.get("tokenizer.ggml.eos_token_id")
    return GgufTokenizer(
        tokenizer=tokenizer,
        byte_level=byte_level,
        bos_id=metadata.get("tokenizer.ggml.bos_token_id", 1 if kind == "llama" else None),
        eos_id=eos_id if eos_id is not None or kind != "llama" else 2,
        eos_ids=_end_ids(metadata, texts, eos_id),
        add_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", adds_bos)),
        add_eos=bool(metadata.get("tokenizer.ggml.add_eos_token", False)),
        chat_template=metadata.get("tokenizer.chat_template"),
        chat_templates={
            name: metadata[f"tokenizer.chat_template.{name}"]
            for name in metadata.get("tokenizer.chat_templates", ())
            if f"tokenizer.chat_template.{name}" in metadata
        },
    )


def _texts(metadata: Mapping[str, Any]) -> list[str]:
    listed = metadata.get("tokenizer.ggml.tokens")
    if listed is None:
        raise CheckpointError(
            "a GGUF file has no tokenizer",
            found="no tokenizer.ggml.tokens",
            action="Give the Hugging Face directory that it came from",
        )
    texts = [
        _bytes(text).decode("utf-8", "backslashreplace") or f"[EMPTY_{token}]"
        for token, text in enumerate(listed)
    ]
    if len(set(texts)) != len(texts):
        raise CheckpointError("a GGUF file has a token twice, which llama.cpp refuses too")
    return texts


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")


def _type_in_use(text: str, kind: int) -> int:
    """The type after llama.cpp's corrections by text."""
    if text in ALWAYS_SHOWN:
        return USER_DEFINED
    return CONTROL if text in END_TEXTS else kind


def _pre_tokenizer(metadata: Mapping[str, Any], kind: str) -> PreTokenizer:
    name = "gemma4" if kind == "gemma4" else metadata.get("tokenizer.ggml.pre", "default")
    pre_tokenizer = pre_tokenizer_named(name)
    if pre_tokenizer is None:
        raise ArchitectureError(
            "fewbits doesn't know this pre-tokenizer",
            found=f"tokenizer.ggml.pre = {name}",
            action="Add an entry to PRE_TOKENIZERS in fewbits/checkpoint/pre_tokenizers.py, or give the "
            "Hugging Face directory that the file came from",
        )
    return pre_tokenizer


def _package() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise MissingExtraError("tokenizers", "models", "Tokenizing") from error
    return tokenizers


def _from_merges(metadata: Mapping[str, Any], texts: Sequence[str], pre_tokenizer: PreTokenizer) -> Any:
    """Byte-pair encoding by a list of merges (GPT-2, Llama 3, Qwen, …)."""
    package = _package()
    vocab = {text: token for token, text in enumerate(texts)}
    # a merge's left part may begin with a space, hence the search from the second letter (as llama.cpp does)
    cuts = [(merge, merge.find(" ", 1)) for merge in metadata.get("tokenizer.ggml.merges", ())]
    pairs = [(merge[:at], merge[at + 1 :]) for merge, at in cuts if at > 0]
    merges = [(a, b) for a, b in pairs if a in vocab and b in vocab and a + b in vocab]
    plain = not pre_tokenizer.byte_level
    model = package.models.BPE(vocab, merges, ignore_merges=pre_tokenizer.ignore_merges, byte_fallback=plain)
    tokenizer = package.Tokenizer(model)
    steps = steps_json(pre_tokenizer.variants[0])
    # The package has no public way from JSON to a pre-tokenizer but a whole tokenizer's JSON or this.
    tokenizer.pre_tokenizer = _pre_tokenizer_from_json(package, steps)
    if plain:
        tokenizer.normalizer = package.normalizers.Replace(" ", SPACE)
        tokenizer.decoder = _plain_decoder(package, strip=False)
    else:
        tokenizer.decoder = package.decoders.ByteLevel()
    return tokenizer


def _pre_tokenizer_from_json(package: Any, steps: Mapping[str, Any]) -> Any:
    made = {
        "Split": lambda step: package.pre_tokenizers.Split(
            package.Regex(step["pattern"]["Regex"]), behavior="isolated"
        ),
        "Digits": lambda step: package.pre_tokenizers.Digits(step["individual_digits"]),
        "Punctuation": lambda step: package.pre_tokenizers.Punctuation("contiguous"),  # noqa: ARG005
        "ByteLevel": lambda step: package.pre_tokenizers.ByteLevel(  # noqa: ARG005
            add_prefix_space=False, use_regex=False
        ),
    }
    return package.pre_tokenizers.Sequence([made[step["type"]](step) for step in steps["pretokenizers"]])


def _from_scores(metadata: Mapping[str, Any], texts: Sequence[str], types: Sequence[int]) -> Any:
    """SentencePiece's byte-pair encoding: neighbours whose union has the highest score are joined."""
    package = _package()
    scores = metadata.get("tokenizer.ggml.scores")
    if scores is None or len(scores) < len(texts):
        raise CheckpointError("a GGUF file with a SentencePiece vocabulary lacks scores")
    vocab = {text: token for token, text in enumerate(texts)}
    order = sorted(range(len(texts)), key=lambda token: -float(scores[token]))
    merges = [
        (texts[token][:cut], texts[token][cut:])
        for token in order
        for cut in range(1, len(texts[token]))
        if texts[token][:cut] in vocab and texts[token][cut:] in vocab
    ]
    unknown = next((text for text, kind in zip(texts, types, strict=True) if kind == UNKNOWN), None)
    model = package.models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = package.Tokenizer(model)
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    replace = package.normalizers.Replace(" ", SPACE)
    prepend = [package.normalizers.Prepend(SPACE)] if prefix else []
    tokenizer.normalizer = package.normalizers.Sequence([*prepend, replace])
    tokenizer.decoder = _plain_decoder(package, strip=prefix)
    return tokenizer


def _plain_decoder(package: Any, *, strip: bool) -> Any:
    decoders = package.decoders
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)


def _strips(metadata: Mapping[str, Any]) -> bool:
    """Whether special tokens take the white space after them; llama.cpp goes by the model's name."""
    name = str(metadata.get("general.name", "")).lower()
    return "phi-3" in name or "phi3" in name


def _add_tokens(tokenizer: Any, texts: Sequence[str], types: Sequence[int], *, strips: bool) -> None:
    """Have control and user-defined tokens found in the text as it stands."""
    added = _package().AddedToken
    by_kind: dict[bool, list[Any]] = {True: [], False: []}
    for text, kind in zip(texts, types, strict=True):
        if kind in (UNKNOWN, CONTROL, USER_DEFINED):
            special = kind != USER_DEFINED
            rstrip = strips and text not in ("<unk>", "<s>", "<|endoftext|>")
            by_kind[special].append(added(text, special=special, normalized=False, rstrip=rstrip))
    tokenizer.add_special_tokens(by_kind[True])
    tokenizer.add_tokens(by_kind[False])


def _end_ids(metadata: Mapping[str, Any], texts: Sequence[str], eos_id: int | None) -> frozenset[int]:
    """Ids that end generation, by their text and by what the file says."""
    ends = {token for token, text in enumerate(texts) if text in END_TEXTS}
    named = {texts[token]: token for token in ends}
    if ("<|call|>" in named and "<|return|>" in named) or ("<|calls|>" in named and "<|flush|>" in named):
        ends.discard(named.get("<|end|>", -1))  # there it ends a message, not the answer
    if "<|tool_response>" in named:
        ends.discard(named.get("</s>", -1))  # an HTML tag in Gemma 4
    for key in ("eot", "eom"):
        ends.add(metadata.get(f"tokenizer.ggml.{key}_token_id", eos_id))
    return frozenset(token for token in (*ends, eos_id) if token is not None)
