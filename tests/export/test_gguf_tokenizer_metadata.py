"""What fewbits writes about a tokenizer, token ids aside, and what it refuses."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from fewbits.checkpoint.gguf_tokenizer import tokenizer_from_metadata
from fewbits.errors import ArchitectureError, CheckpointError
from fewbits.export.gguf.tokenizer import tokenizer_metadata
from llama_cpp_tokenizer import llama_vocabulary, write_vocabulary
from tokenizer_samples import (
    BYTE_TOKENS,
    MULTILINGUAL,
    SAMPLES,
    gpt2_document,
    learned_document,
    llama2_document,
    scored_pieces,
    with_bos,
    write_model,
)

CHAT_TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def test_tokens_and_types(tmp_path: Path) -> None:
    document = gpt2_document()
    rows = len(document["model"]["vocab"]) + 5
    metadata = tokenizer_metadata(write_model(tmp_path, document, {}), {"vocab_size": rows})
    texts, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]

    assert len(texts) == len(types) == rows
    assert types[:4] == [3, 3, 3, 3]
    assert (texts[rows - 5], types[rows - 5]) == ("<tool>", 4)
    assert texts[rows - 4 :] == [f"[PAD{token}]" for token in range(rows - 4, rows)]
    assert types[rows - 4 :] == [5, 5, 5, 5]
    assert len(metadata["tokenizer.ggml.merges"]) == len(document["model"]["merges"])


def test_a_token_that_looks_like_a_hole(tmp_path: Path) -> None:
    document = gpt2_document()
    rows = len(document["model"]["vocab"]) + 2
    document["added_tokens"][-1]["content"] = f"[PAD{rows - 1}]"
    metadata = tokenizer_metadata(write_model(tmp_path, document, {}), {"vocab_size": rows})

    assert len(set(metadata["tokenizer.ggml.tokens"])) == rows


def test_special_ids(tmp_path: Path) -> None:
    names = {"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|endoftext|>", "pad_token": "<pad>"}
    directory = write_model(tmp_path, gpt2_document(), names)
    config = {"vocab_size": 1210, "eos_token_id": 3, "bos_token_id": 99}
    metadata = tokenizer_metadata(directory, config)
    ids = {
        key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items() if key.endswith("_id")
    }

    assert ids == {"bos_token_id": 1, "eos_token_id": 0, "padding_token_id": 3, "eot_token_id": 2}
    assert metadata["tokenizer.ggml.add_bos_token"] is False
    assert metadata["tokenizer.ggml.add_eos_token"] is False


def test_what_is_added_comes_from_the_post_processor(tmp_path: Path) -> None:
    document = with_bos(gpt2_document(), "<pad>")
    template = document["post_processor"]["processors"][1]
    template["single"].append({"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}})
    template["special_tokens"]["<|endoftext|>"] = {"id": "<|endoftext|>", "ids": [0], "tokens": []}
    directory = write_model(tmp_path, document, {"bos_token": "<|im_start|>", "add_bos_token": False})
    metadata = tokenizer_metadata(directory, {})

    assert metadata["tokenizer.ggml.add_bos_token"] is True
    assert metadata["tokenizer.ggml.bos_token_id"] == 3
    assert metadata["tokenizer.ggml.add_eos_token"] is True
    assert metadata["tokenizer.ggml.eos_token_id"] == 0


def test_chat_templates(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "old"}, {"name": "tool_use", "template": "tools"}]
    directory = write_model(tmp_path, gpt2_document(), {"chat_template": named})
    before = tokenizer_metadata(directory, {})
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    after = tokenizer_metadata(directory, {})

    assert before["tokenizer.chat_template"] == "old"
    assert after["tokenizer.chat_template"] == CHAT_TEMPLATE
    assert after["tokenizer.chat_templates"] == ["tool_use"]
    assert tokenizer_from_metadata(after).chat_template == CHAT_TEMPLATE
    assert tokenizer_from_metadata(after).chat_templates == {"tool_use": "tools"}


def test_large_vocabulary_is_read_quickly(tmp_path: Path) -> None:
    document = gpt2_document()
    size = len(document["model"]["vocab"])
    # 150,000 more tokens, all made of two that exist
    pieces = [text for text in document["model"]["vocab"] if "<" not in text][:400]
    pairs = [
        (left, right) for left in pieces for right in pieces if left + right not in document["model"]["vocab"]
    ]
    for left, right in pairs[:150_000]:
        if left + right not in document["model"]["vocab"]:
            document["model"]["vocab"][left + right] = len(document["model"]["vocab"]) + 1
            document["model"]["merges"].append([left, right])
    directory = write_model(tmp_path, document, {})
    started = time.process_time()
    metadata = tokenizer_metadata(directory, {})

    assert time.process_time() - started < 1
    assert len(metadata["tokenizer.ggml.tokens"]) > size + 100_000


def sentencepiece_file(specials: tuple[str, ...]) -> bytes:
    """A tokenizer.model (protobuf) with the pieces of `llama2_document`."""

    def block(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2]) + varint(len(data)) + data

    def varint(value: int) -> bytes:
        return bytes([value]) if value < 128 else bytes([value & 0x7F | 0x80]) + varint(value >> 7)

    kinds = {"<unk>": 2, "<s>": 3, "</s>": 3} | dict.fromkeys(BYTE_TOKENS, 6)
    scores = dict.fromkeys((*specials, *BYTE_TOKENS), 0.0) | scored_pieces(runs=False)
    pieces = [
        block(1, text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + varint(kinds.get(text, 1))
        for text, score in scores.items()
    ]
    trainer, normalizer = b"\x18\x02", block(1, b"identity") + b"\x18\x01\x20\x00"
    return b"".join(block(1, piece) for piece in pieces) + block(2, trainer) + block(3, normalizer)


def test_sentencepiece_model_alone(tmp_path: Path) -> None:
    document = llama2_document()
    both = tokenizer_metadata(write_model(tmp_path, document, {}), {"vocab_size": 1400})
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_file(("<unk>", "<s>", "</s>")))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    metadata = tokenizer_metadata(tmp_path, {"vocab_size": 1400})
    write_vocabulary(tmp_path / "vocabulary.gguf", metadata)

    assert metadata["tokenizer.ggml.tokens"] == both["tokenizer.ggml.tokens"]
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    assert metadata["tokenizer.ggml.remove_extra_whitespaces"] is False
    hugging_face = Tokenizer.from_str(json.dumps(document))
    with llama_vocabulary(tmp_path / "vocabulary.gguf") as vocabulary:
        for text in (*SAMPLES, *MULTILINGUAL):
            assert vocabulary.encode(text, add_special=True) == hugging_face.encode(text).ids, text


@pytest.mark.parametrize("cut", [1, 7, 40, 1000])
def test_truncated_sentencepiece_model(tmp_path: Path, cut: int) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_file(("<unk>", "<s>", "</s>"))[:-cut])

    with pytest.raises(CheckpointError, match=r"tokenizer\.model"):
        tokenizer_metadata(tmp_path, {})


def test_unknown_pre_tokenizer_is_refused_with_its_pattern(tmp_path: Path) -> None:
    document = gpt2_document()
    document["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "[aeiou]+"}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ],
    }

    with pytest.raises(ArchitectureError, match=r"\[aeiou\]\+.*PRE_TOKENIZERS"):
        tokenizer_metadata(write_model(tmp_path, document, {}), {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "prefix space"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace"),
        ({"pre_tokenizer": None}, "no pre-tokenizer"),
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
        ({"model": {"type": "WordPiece", "vocab": {}}}, "WordPiece"),
        ({"model": {"type": "Unigram", "vocab": []}}, "Unigram"),
    ],
)
def test_what_llama_cpp_cannot_do_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        tokenizer_metadata(write_model(tmp_path, gpt2_document() | change, {}), {})


def test_learned_merges_with_a_space_before_the_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchitectureError, match="learned from text"):
        tokenizer_metadata(write_model(tmp_path, learned_document(prefix=True), {}), {})


def test_missing_byte_tokens_are_refused(tmp_path: Path) -> None:
    document = llama2_document()
    del document["model"]["vocab"]["<0xE2>"]

    with pytest.raises(ArchitectureError, match="<0xE2>"):
        tokenizer_metadata(write_model(tmp_path, document, {}), {})


def test_more_tokens_than_rows(tmp_path: Path) -> None:
    directory = write_model(tmp_path, gpt2_document(), {})
    own = len(gpt2_document()["model"]["vocab"])

    assert len(tokenizer_metadata(directory, {"vocab_size": own})["tokenizer.ggml.tokens"]) == own
    with pytest.raises(CheckpointError, match="more tokens than"):
        tokenizer_metadata(directory, {"vocab_size": own - 1})


def test_two_tokens_with_one_id(tmp_path: Path) -> None:
    document = gpt2_document()
    document["added_tokens"][-1]["id"] = 700

    with pytest.raises(CheckpointError, match="same id"):
        tokenizer_metadata(write_model(tmp_path, document, {}), {})


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="tokenizer is missing"):
        tokenizer_metadata(tmp_path, {})


@pytest.mark.parametrize(
    ("metadata", "error"),
    [
        ({}, CheckpointError),
        ({"tokenizer.ggml.tokens": ["a", "a"], "tokenizer.ggml.model": "gpt2"}, CheckpointError),
        ({"tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.model": "rwkv"}, ArchitectureError),
        ({"tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.model": "llama"}, CheckpointError),
        (
            {"tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "kimi-k2"},
            ArchitectureError,
        ),
    ],
)
def test_metadata_without_a_usable_tokenizer(metadata: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        tokenizer_from_metadata(metadata)
