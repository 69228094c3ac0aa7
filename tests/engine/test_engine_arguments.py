"""Arbitrary arguments end in a result or in EngineError, and a refused step changes nothing."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.engine.engine import open_engine
from fewbits.errors import EngineError
from smoke import VOCABULARY, write_model

WILD = st.one_of(
    st.integers(-2, VOCABULARY + 1),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([2**31, 2**32, 2**40 + 1]),
)
SLOTS, TOKENS = st.integers(0, 1), st.integers(0, VOCABULARY - 1)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("arguments") / "model.gguf"
    write_model(path)
    return path


@pytest.fixture(scope="module")
def engine(model):
    return open_engine(model, threads=1, sequences=2, context=20)


def lengths(engine):
    return [engine.length(slot) for slot in range(engine.sequences)]


def numbers(good):
    """Lists and arrays of several types, mostly of what fits."""
    lists = st.one_of(st.lists(good, max_size=12), st.lists(good, max_size=12), st.lists(WILD, max_size=12))
    return lists.flatmap(lambda found: st.sampled_from([found, tuple(found), np.array(found, np.int64)]))


@settings(max_examples=400, deadline=None, derandomize=True)
@given(numbers(SLOTS), numbers(TOKENS), numbers(st.integers(0, 3)))
def test_any_step(engine, sequences, tokens, wanted):
    before = lengths(engine)

    try:
        logits = engine.step(sequences, tokens, wanted)
    except EngineError:
        assert lengths(engine) == before
    else:
        assert logits.shape == (len(wanted), VOCABULARY)
        assert np.isfinite(logits).all()
        assert sum(lengths(engine)) == sum(before) + len(tokens)
        assert all(0 <= int(token) < VOCABULARY for token in tokens)
    if max(lengths(engine)) > 12:
        engine.truncate(0, 0)
        engine.truncate(1, 0)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(WILD, WILD, WILD)
def test_any_truncation_copy_and_length(engine, first, second, third):
    engine.truncate(0, 0)
    engine.step([0, 0, 0], [1, 2, 3], [])

    for act in (
        lambda: engine.copy(first, second, third),
        lambda: engine.truncate(first, third),
        lambda: engine.length(first),
    ):
        try:
            act()
        except EngineError:
            continue
    assert all(0 <= length <= 20 for length in lengths(engine))


@pytest.mark.parametrize("tokens", [[1.5], ["1"], [None], [[1]], 1, None, [2**70], [True]])
def test_what_are_no_tokens_is_refused(engine, tokens):
    before = lengths(engine)

    with pytest.raises(EngineError):
        engine.step([0], tokens, [0])

    assert lengths(engine) == before


def test_a_context_beyond_float32s_whole_numbers_is_refused(model):
    with pytest.raises(EngineError, match="16777216"):
        open_engine(model, context=1 << 25)


def run_in_3_gib(script, model):
    """What a process that has so much address space prints; the model is its argument."""
    limited = (
        "import resource, sys\n"
        "from fewbits.engine.engine import open_engine\n"
        "from fewbits.errors import EngineError\n"
        "resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))\n"
    )
    command = [sys.executable, "-c", limited + script, str(model)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_cache_that_there_is_no_memory_for_is_refused(model):
    script = (
        "try:\n"
        "    open_engine(sys.argv[1], threads=1, context=1 << 22, sequences=8)\n"
        "except EngineError as error:\n"
        "    print(error)\n"
        "print(open_engine(sys.argv[1], threads=1, context=64).step([0], [1], [0]).shape)\n"
    )

    printed = run_in_3_gib(script, model)

    # Two blocks of 64 numbers, keys and values of 2 bytes: 512 bytes a position.
    assert "16.0 GiB for keys and values" in printed
    assert "shorter context" in printed
    assert f"(1, {VOCABULARY})" in printed


def test_more_threads_than_the_system_starts_are_refused(model):
    script = (
        "try:\n    open_engine(sys.argv[1], threads=5000)\nexcept EngineError as error:\n    print(error)\n"
    )

    printed = run_in_3_gib(script, model)

    assert "threads, not 5000" in printed
