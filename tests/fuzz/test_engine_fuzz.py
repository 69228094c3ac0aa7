"""GGUF files whose metadata or tensor table lie: the engine refuses them or runs; it takes no memory to speak of."""

from __future__ import annotations

import os
import random
import resource
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.tiny_models import TINY_MODELS, save

import fewbits
from fewbits.checkpoint.gguf import read_gguf_header
from fewbits.checkpoint.gguf_constants import SCALAR_CODES, ValueType
from fewbits.engine.engine import open_engine
from fewbits.errors import FewbitsError
from model_files import GgufFile, GgufTensor, gguf_value

CASES = int(os.environ.get("FEWBITS_FUZZ_CASES", "100"))  # of each base file
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
MORE_KEYS = [
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "rope.scaling.type",
    "rope.scaling.factor",
]
MORE_KEYS += [
    "expert_count",
    "rope.dimension_count",
    "attention.key_length",
    "final_logit_softcapping",
    "rope.scale_linear",
]
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


def a_scalar(kind: ValueType, rng: random.Random) -> Any:
    """A value of a kind that isn't an array, likely one that nobody expects."""
    if kind is ValueType.STRING:
        return rng.choice(WORDS)
    if kind is ValueType.BOOL:
        return rng.random() < 0.5
    if kind in (ValueType.FLOAT32, ValueType.FLOAT64):
        return rng.choice(FLOATS) if rng.random() < 0.7 else rng.uniform(-100, 100)
    least, most = BITS[SCALAR_CODES[kind]]
    return min(max(rng.choice(INTEGERS) if rng.random() < 0.7 else rng.randrange(300), least), most)


def a_value(rng: random.Random) -> bytes:
    """A metadata value of any type."""
    kind = rng.choice(list(ValueType))
    if kind is not ValueType.ARRAY:
        return gguf_value(kind, a_scalar(kind, rng))
    element = rng.choice([kind for kind in ValueType if kind is not ValueType.ARRAY])
    return gguf_value(kind, [a_scalar(element, rng) for _ in range(rng.randrange(6))], element)


def lying_tensors(tensors: Sequence[GgufTensor], rng: random.Random) -> list[GgufTensor]:
    """A table of tensors with one of them missing, renamed, or of another shape, type or place."""
    found = list(tensors)
    at = rng.randrange(len(found))
    tensor, other = found[at], rng.choice(found)
    size = rng.choice(INTEGERS[:-1]) if rng.random() < 0.5 else rng.randrange(1, 300)
    match rng.randrange(8):
        case 0:
            del found[at]
        case 1:
            found[at] = replace(tensor, name=other.name)
        case 2:
            found[at] = replace(tensor, name=rng.choice(["", "x", "output.weight", "rope_freqs.weight"]))
        case 3:
            sizes = [*tensor.shape, size, 1]
            found[at] = replace(tensor, shape=tuple(rng.sample(sizes, rng.randrange(len(sizes)))))
        case 4:
            found[at] = replace(tensor, shape=tensor.shape[::-1])
        case 5:
            found[at] = replace(tensor, type_number=rng.randrange(46))
        case 6:
            found[at] = replace(tensor, offset=size * 32 % 2**64)
        case 7:
            found[at] = replace(other, name=tensor.name)
    return found


def lying(base: GgufFile, rng: random.Random) -> GgufFile:
    """A file that lies in one to three places."""
    metadata, tensors = dict(base.metadata), list(base.tensors)
    telling = [key for key in metadata if not key.startswith("fewbits.")]
    for _ in range(rng.randint(1, 3)):
        key, other = rng.choice(telling), rng.choice(telling)
        match rng.randrange(7):
            case 0 | 1 | 2:
                metadata[key] = a_value(rng)
            case 3:
                metadata.pop(key, None)
            case 4:
                metadata[key] = base.metadata[other]
            case 5:
                tensors = lying_tensors(tensors, rng) or tensors
            case 6:
                prefix = next(key for key in telling if key.endswith(".block_count")).split(".")[0]
                metadata[f"{prefix}.{rng.choice(MORE_KEYS)}"] = a_value(rng)
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
    base, text, rng = bases(name), name == "text", random.Random(f"fewbits {name}")
    path = tmp_path / "case.gguf"  # there still if this process doesn't survive it
    run(base.write(path), text=text)  # imports
    ends: Counter[str] = Counter()
    for case in range(CASES):
        lying(base, rng).write(path)
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                ends[run(path, text=text)] += 1
            except Exception as error:
                kept = path.rename(tmp_path / f"case-{case}.gguf")
                raise AssertionError(f"case {case} of {name}, kept as {kept}") from error
        assert time.monotonic() - began < MOST_SECONDS
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_MEMORY

    assert min(ends["runs"], ends.total() - ends["runs"]) > CASES // 20, ends
