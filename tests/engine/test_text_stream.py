"""Text from tokens: what the tokenizer makes of all at once, in whole characters, and up to a stop string."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.checkpoint.gguf_tokenizer import GgufTokenizer, tokenizer_from_metadata
from fewbits.engine.text_stream import TextStream
from fewbits.export.gguf.tokenizer import tokenizer_metadata
from tokenizer_samples import SAMPLES, gemma_document, gpt2_document, llama2_document, write_model

DOCUMENTS = {
    "bytes": (gpt2_document, "<|endoftext|>"),
    "sentencepiece": (llama2_document, "</s>"),
    "gemma": (gemma_document, "<eos>"),
}


@cache
def tokenizer_of(name: str) -> GgufTokenizer:
    make, eos = DOCUMENTS[name]
    document = make()
    with TemporaryDirectory() as folder:
        directory = write_model(Path(folder), document, {"eos_token": eos})
        rows = len(document["model"]["vocab"]) + 40
        return tokenizer_from_metadata(tokenizer_metadata(directory, {"vocab_size": rows}))


def streamed(stream: TextStream, ids: list[int]) -> str:
    return "".join(stream.add(token) for token in ids) + stream.finish()


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize("text", SAMPLES)
def test_tokens_one_by_one_are_the_text_that_all_together_are(name: str, text: str) -> None:
    tokenizer = tokenizer_of(name)
    before = tokenizer.encode("a", add_special=False)
    ids = tokenizer.encode(text, add_special=False)

    written = streamed(TextStream(tokenizer.token_bytes), ids)

    assert written == tokenizer.decode([*before, *ids])[len(tokenizer.decode(before)) :]


@given(st.lists(st.integers(0, 1200), max_size=30))
def test_any_tokens_of_bytes_are_decoded_as_the_tokenizer_decodes_them(ids: list[int]) -> None:
    tokenizer = tokenizer_of("bytes")
    written = streamed(TextStream(tokenizer.token_bytes), ids)
    whole = tokenizer.decode(ids)

    assert written == whole or (whole.endswith("\ufffd") and written == whole[:-1])


def test_a_character_comes_when_its_last_byte_has_come() -> None:
    parts = list("a🚀é".encode())

    stream = TextStream(lambda token: bytes([token]))

    assert [stream.add(byte) for byte in parts] == ["a", "", "", "", "🚀", "", "é"]


def test_a_character_that_is_not_whole_at_the_end_is_left_out() -> None:
    stream = TextStream(lambda token: bytes([token]))

    assert streamed(stream, list("a🚀".encode())[:-1]) == "a"


def test_control_tokens_and_rows_beyond_the_vocabulary_have_no_text() -> None:
    tokenizer = tokenizer_of("bytes")
    end = tokenizer.encode("<|im_end|>", add_special=False)

    assert [tokenizer.token_bytes(token) for token in (*end, 10**6)] == [b"", b""]


LETTERS = st.text(alphabet="ab ", max_size=24)
STOPS = st.lists(st.text(alphabet="ab ", min_size=1, max_size=5), max_size=3)


@given(LETTERS, STOPS, st.integers(1, 4))
def test_the_answer_ends_before_the_stop_string_that_is_complete_first(
    text: str, stops: list[str], size: int
) -> None:
    chunks = [text[at : at + size] for at in range(0, len(text), size)]
    stream = TextStream(lambda token: chunks[token].encode(), stops)
    given_out, answer = "", None
    for token in range(len(chunks)):
        given_out += stream.add(token)
        so_far = "".join(chunks[: token + 1])
        cuts = [so_far.find(stop) for stop in stops if stop in so_far]
        if cuts:
            answer = so_far[: min(cuts)]
            break
        assert so_far.startswith(given_out)
    if answer is None:
        assert stream.stopped_by is None
        assert given_out + stream.finish() == text
    else:
        assert stream.stopped_by in stops
        assert given_out + stream.finish() == answer


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    chunks = ["one <", "|", "x", "<|e", "nd|", "> more"]
    stream = TextStream(lambda token: chunks[token].encode(), ["<|end|>"])

    assert [stream.add(token) for token in range(6)] == ["one ", "", "<|x", "", "", ""]
    assert stream.stopped_by == "<|end|>"
    assert stream.finish() == ""
