"""GGUF files whose metadata or tensor table lie: the engine refuses them or runs; it takes no memory to speak of."""

from __future__ import annotations

import os
import resource
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from tests.tiny_models import TINY_MODELS, save

import fewbits
from fewbits.checkpoint.gguf import read_gguf_header
from fewbits.checkpoint.gguf_constants import SCALAR_CODES, ValueType
from fewbits.engine.engine import open_engine
from fewbits.errors import FewbitsError
from model_files import GgufFile, GgufTensor, gguf_value

EXAMPLES = int(os.environ.get("FEWBITS_FUZZ_EXAMPLES", "60"))  # of each base file
MODELS = ("llama-llama3-rope", "qwen2-yarn", "gemma3_text-untied", "phi3-longrope-long", "mixtral", "granite")
MOST_MEMORY, MOST_SECONDS = 256 << 20, 20.0

INTEGERS = [
    0,
    1,
    2,
    3,
    7,
    16,
    31,
    32,
    255,
    256,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**63 - 1,
    2**63,
    2**64 - 1,
    -1,
]
FLOATS = [0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e-30, 3e38, float("inf"), float("-inf"), float("nan")]
WORDS = ["", "x", "yarn", "linear", "longrope", "llama", "gpt2", "llama3", "é" * 100]
BITS = {"B": (0, 255), "b": (-128, 127), "H": (0, 65535), "h": (-(2**15), 2**15 - 1), "I": (0, 2**32 - 1)}
BITS |= {"i": (-(2**31), 2**31 - 1), "Q": (0, 2**64 - 1), "q": (-(2**63), 2**63 - 1)}


def base_file(path: Path) -> GgufFile:
    """A file as something that every field of can be set to a lie."""
    header = read_gguf_header(path)
    data = path.read_bytes()
    metadata = {}
    for key, value in header.metadata.items():
        kind, element = header.metadata_types[key]
        plain = value.tolist() if hasattr(value, "tolist") else value
        metadata[key] = gguf_value(ValueType(kind), plain, None if element is None else ValueType(element))
    tensors = [
        GgufTensor(t.name, t.shape, t.dtype, data[t.offset : t.offset + t.nbytes]) for t in header.tensors
    ]
    return GgufFile(metadata, tensors, alignment=header.alignment)


@pytest.fixture(scope="module")
def bases(tmp_path_factory, tiny_llama):
    """Files of several architectures, and one with a tokenizer, made as they are asked for."""
    made: dict[str, GgufFile] = {}

    def base(name: str) -> GgufFile:
        if name not in made:
            folder = tmp_path_factory.mktemp("fuzz")
            if name == "text":
                source = tiny_llama
            else:
                save(TINY_MODELS[name], source := folder / "hf")
            fewbits.quantize(source, folder / "model.gguf", format="Q8_0")
            made[name] = base_file(folder / "model.gguf")
        return made[name]

    return base


@st.composite
def scalars(draw, kind: ValueType):
    """A value of a kind that isn't an array, likely one that nobody expects."""
    if kind is ValueType.STRING:
        return draw(st.sampled_from(WORDS))
    if kind is ValueType.BOOL:
        return draw(st.booleans())
    if kind in (ValueType.FLOAT32, ValueType.FLOAT64):
        return draw(st.sampled_from(FLOATS) | st.floats(width=32, min_value=-100, max_value=100))
    least, most = BITS[SCALAR_CODES[kind]]
    return min(max(draw(st.sampled_from(INTEGERS) | st.integers(0, 300)), least), most)


@st.composite
def values(draw):
    """A metadata value of any type."""
    kind = draw(st.sampled_from(list(ValueType)))
    if kind is not ValueType.ARRAY:
        return gguf_value(kind, draw(scalars(kind)))
    element = draw(st.sampled_from([kind for kind in ValueType if kind is not ValueType.ARRAY]))
    return gguf_value(kind, draw(st.lists(scalars(element), max_size=5)), element)


@st.composite
def lying_tensors(draw, tensors):
    """A table of tensors with one of them missing, renamed, or of another shape, type or place."""
    tensors = list(tensors)
    at = draw(st.integers(0, len(tensors) - 1))
    tensor, other = tensors[at], tensors[draw(st.integers(0, len(tensors) - 1))]
    sizes = st.sampled_from(INTEGERS[:-1]) | st.integers(1, 300)
    match draw(st.integers(0, 7)):
        case 0:
            del tensors[at]
        case 1:
            tensors[at] = replace(tensor, name=other.name)
        case 2:
            tensors[at] = replace(
                tensor, name=draw(st.sampled_from(["", "x", "output.weight", "rope_freqs.weight"]))
            )
        case 3:
            tensors[at] = replace(tensor, shape=tuple(draw(st.lists(sizes, max_size=5))))
        case 4:
            tensors[at] = replace(tensor, shape=tensor.shape[::-1])
        case 5:
            tensors[at] = replace(tensor, type_number=draw(st.integers(0, 45)))
        case 6:
            tensors[at] = replace(tensor, offset=draw(sizes) * 32)
        case 7:
            tensors[at] = replace(other, name=tensor.name)
    return tensors


@st.composite
def lying_files(draw, base: GgufFile):
    """A file that lies in one to three places."""
    metadata, tensors = dict(base.metadata), list(base.tensors)
    telling = [key for key in metadata if not key.startswith("fewbits.")]
    for _ in range(draw(st.integers(1, 3))):
        key, other = draw(st.sampled_from(telling)), draw(st.sampled_from(telling))
        match draw(st.integers(0, 5)):
            case 0 | 1 | 2:
                metadata[key] = draw(values())
            case 3:
                metadata.pop(key, None)
            case 4:
                metadata[key] = metadata.get(other, b"")
            case 5 if tensors:
                tensors = draw(lying_tensors(tensors))
    if draw(st.integers(0, 5)) == 0 and tensors:
        extra = draw(
            st.sampled_from([*metadata, "attention.sliding_window", "rope.scaling.type", "expert_count"])
        )
        prefix = str(bytes(base.metadata["general.architecture"][12:]), "ascii", "replace")
        metadata[f"{prefix}.{extra}"] = draw(values())
    return replace(base, metadata=metadata, tensors=tensors)


def run(path: Path, *, text: bool) -> str:
    """Open a file and read three tokens, also write two after some words of `text`; how it ended."""
    try:
        engine = open_engine(path, threads=1, context=16)
        assert engine.step([0, 0, 0], [1, 2, 3], [0, 2]).shape == (2, engine.vocabulary)
        if text:
            fewbits.load(path, threads=1, context=16).generate("some words", 2)
    except FewbitsError as error:
        return type(error).__name__
    return "runs"


def test_every_base_file_runs(bases, tmp_path):
    for name in (*MODELS, "text"):
        assert run(bases(name).write(tmp_path / "base.gguf"), text=name == "text") == "runs", name


@pytest.mark.parametrize("name", [*MODELS, "text"])
def test_a_lying_file_is_refused_or_runs(name, bases, tmp_path):
    base, text = bases(name), name == "text"
    path = tmp_path / "case.gguf"  # kept if this process doesn't survive it
    run(base.write(path), text=text)  # imports

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), database=None)
    @given(lying_files(base))
    def refused_or_runs(file: GgufFile) -> None:
        file.write(path)
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            event(run(path, text=text))
        assert time.monotonic() - began < MOST_SECONDS
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_MEMORY

    refused_or_runs()
