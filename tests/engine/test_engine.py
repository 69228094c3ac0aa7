"""The native engine's forward pass against transformers, for every architecture of the table."""

import numpy as np
import pytest
from tests.tiny_models import TINY_MODELS, sample_tokens, save, transformers_logits

import fewbits
from fewbits import _native
from fewbits.engine.engine import open_engine
from fewbits.errors import EngineError

UNKNOWN = {"qwen2_moe"}  # a shared expert


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Float32 GGUF files of the tiny models, with transformers' logits of the sample; made as they are asked for."""
    made = {}

    def write(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("engine")
            model = save(TINY_MODELS[name], folder / "hf")
            fewbits.quantize(folder / "hf", folder / "model.gguf", format="F32", effort="fast")
            made[name] = folder / "model.gguf", transformers_logits(model, sample_tokens())
        return made[name]

    return write


def read(engine, tokens, sequence=0):
    """Logits after every token [T, V]."""
    return engine.step([sequence] * len(tokens), tokens, range(len(tokens)))


@pytest.mark.parametrize("name", sorted(set(TINY_MODELS) - UNKNOWN))
def test_logits_are_those_of_transformers(written, name):
    path, expected = written(name)

    # Some models have other rope for long contexts.
    found = read(open_engine(path, context=len(sample_tokens())), sample_tokens())

    # Keys and values are rounded to float16: 1 in 2,048.
    assert (found - expected).std() < 2e-3 * expected.std()


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "mixtral", "phi3", "olmo2", "gemma2"])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_token_gets_the_same_logits_in_any_batch(written, name, threads):
    path, _ = written(name)
    tokens = sample_tokens()
    whole = read(open_engine(path, threads=2), tokens)

    engine = open_engine(path, threads=threads, sequences=3)
    first = read(engine, tokens[:5], 1)
    others = [0, 1, 2, 1, 0]
    mixed = engine.step(others, [3, tokens[5], 4, tokens[6], 5], [1, 3])
    one_by_one = [engine.step([1], [token], [0])[0] for token in tokens[7:]]

    assert np.array_equal(np.concatenate([first, mixed, one_by_one]), whole)


def test_what_was_truncated_is_forgotten_and_a_copy_goes_on_alone(written):
    path, _ = written("gemma3_text")
    tokens = sample_tokens()
    engine = open_engine(path, sequences=2)
    whole = read(engine, tokens)

    engine.copy(0, 1, 20)
    engine.truncate(0, 9)
    read(engine, [1, 2, 3])
    engine.truncate(0, 9)

    assert np.array_equal(read(engine, tokens[9:]), whole[9:])
    assert np.array_equal(read(engine, tokens[20:], 1), whole[20:])
    assert engine.length(0) == engine.length(1) == len(tokens)


def test_a_rounded_cache_costs_a_little(written):
    path, _ = written("llama")
    exact, q8, q4 = (read(open_engine(path, kv_cache=kind), sample_tokens()) for kind in ("f16", "q8", "q4"))

    spread = exact.std()
    assert 0 < np.abs(q8 - exact).mean() < 0.01 * spread
    assert np.abs(q8 - exact).mean() < np.abs(q4 - exact).mean() < 0.2 * spread


@pytest.mark.parametrize(
    ("sequences", "tokens", "wanted", "found"),
    [
        ([0], [-1], [], "no token -1"),
        ([0], [10**6], [], "no token 1000000"),
        ([1], [1], [], "no sequence 1"),
        ([-1], [1], [], "no sequence -1"),
        ([0] * 9, [1] * 9, [], "longer than the context of 8"),
        ([0, 0], [1, 1], [1, 0], "ascending"),
        ([0, 0], [1, 1], [2], "below the number"),
    ],
)
def test_a_step_that_cannot_be_changes_nothing(written, sequences, tokens, wanted, found):
    path, _ = written("llama")
    engine = open_engine(path, context=8)
    engine.step([0, 0], [1, 2], [])

    with pytest.raises(EngineError, match=found):
        engine.step(sequences, tokens, wanted)

    assert engine.length(0) == 2
    with pytest.raises(EngineError, match="has 2 positions, not 3"):
        engine.truncate(0, 3)
    assert engine.step([], [], []).shape == (0, engine.vocabulary)


def test_an_architecture_with_tensors_that_the_engine_does_not_know_is_named(written):
    path, _ = written("qwen2_moe")

    with pytest.raises(EngineError, match="shexp") as refused:
        open_engine(path)

    assert "llama.cpp runs the file" in str(refused.value)


@pytest.mark.parametrize("option", [{"threads": 0}, {"context": 0}, {"sequences": 0}, {"kv_cache": "f8"}])
def test_settings_out_of_range_are_refused(written, option):
    with pytest.raises(EngineError):
        open_engine(written("llama")[0], **option)


def test_a_damaged_description_is_refused_by_the_native_side(written):
    engine = open_engine(written("llama")[0])
    config = engine.description.config

    with pytest.raises(ValueError, match="token_embd"):
        _native.Engine(config, {}, 1, 8, 1, "f16")
    with pytest.raises(ValueError, match="rope and a window"):
        _native.Engine(config | {"window": []}, {}, 1, 8, 1, "f16")
