"""The sampler against its definition in NumPy, and against the probabilities that it should follow."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fewbits import _native
from fewbits.engine.engine import open_engine
from fewbits.engine.sampling import Sampling
from fewbits.errors import EngineError

EMPTY = np.zeros(0, np.int32)


class Mersenne:
    """mt19937_64 as the C++ standard ([rand.eng.mers], [rand.predef]) defines it."""

    N, M = 312, 156

    def __init__(self, seed):
        self.state = [seed]
        for i in range(1, self.N):
            last = self.state[-1]
            self.state.append((6364136223846793005 * (last ^ (last >> 62)) + i) % 2**64)
        self.at = self.N

    def next(self):
        if self.at == self.N:
            for i in range(self.N):
                y = (self.state[i] & ~0x7FFFFFFF) | (self.state[(i + 1) % self.N] & 0x7FFFFFFF)
                twist = 0xB5026F5AA96619E9 if y & 1 else 0
                self.state[i] = self.state[(i + self.M) % self.N] ^ (y >> 1) ^ twist
            self.at = 0
        y = self.state[self.at]
        self.at += 1
        y ^= (y >> 29) & 0x5555555555555555
        y ^= (y << 17) & 0x71D67FFFEDA60000
        y ^= (y << 37) & 0xFFF7EEE000000000
        return y ^ (y >> 43)


def penalized(logits, recent, penalty, window):
    logits = logits.astype(np.float32).copy()
    for token in set(recent[len(recent) - min(window, len(recent)) :].tolist()):
        logits[token] = (
            logits[token] / np.float32(penalty) if logits[token] > 0 else logits[token] * np.float32(penalty)
        )
    return logits


def kept(logits, options):
    """Which tokens may be drawn, as a mask."""
    order = np.lexsort((np.arange(len(logits)), -logits))
    order = order[: options.get("top_k", 0) or None]
    weights = np.exp(logits[order].astype(np.float64) - logits.max())
    before = np.cumsum(weights) - weights
    order = order[(before < options.get("top_p", 1.0) * weights.sum()) | (before == 0)]
    order = order[np.exp(logits[order].astype(np.float64) - logits.max()) >= options.get("min_p", 0.0)]
    mask = np.zeros(len(logits), bool)
    mask[order] = True
    return mask


def reference(logits, recent, random, **options):
    logits = penalized(
        logits, recent, options.get("repetition_penalty", 1.0), options.get("repetition_window", 64)
    )
    temperature = options.get("temperature", 0.0)
    if temperature == 0:
        return int(logits.argmax())
    mask = kept(logits, options)
    weights = np.where(mask, np.exp((logits.astype(np.float64) - logits.max()) / temperature), 0.0)
    sums = np.cumsum(weights)
    return int(np.searchsorted(sums, (random.next() >> 11) * 2.0**-53 * sums[-1], side="right"))


def test_the_reference_is_the_standards_generator():
    """[rand.predef]: the 10,000th number of a default-constructed engine, whose seed is 5489."""
    random = Mersenne(5489)
    for _ in range(9999):
        random.next()
    assert random.next() == 9981545732273789042


OPTIONS = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 40},
    {"temperature": 1.5, "top_k": 5000},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 1.2, "top_p": 0.999},
    {"temperature": 0.8, "top_p": 0.01},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 2.0, "top_k": 100, "top_p": 0.8, "min_p": 0.02},
    {"repetition_penalty": 1.3, "repetition_window": 20},
    {"temperature": 0.9, "top_k": 50, "top_p": 0.95, "repetition_penalty": 1.2},
    {"temperature": 1.0, "repetition_penalty": 0.8, "repetition_window": 0},
]


@pytest.mark.parametrize("vocabulary", [7, 1023, 1025, 50_000])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_tokens_are_those_of_the_definition(options, vocabulary):
    """Floats that differ in the last bits could choose another token once in a million draws: not in these."""
    rng = np.random.default_rng(vocabulary)
    seed = int(rng.integers(0, 2**63))
    sampler, random = Sampling(seed=seed, **options).sampler(), Mersenne(seed)
    chosen, expected = [], []
    for _ in range(40):
        logits = (rng.standard_normal(vocabulary) * 3).astype(np.float32)
        logits = np.round(logits, 1) if rng.integers(2) else logits  # ties
        recent = rng.integers(0, vocabulary, 30).astype(np.int32)
        chosen.append(sampler.choose(logits, recent))
        expected.append(reference(logits, recent, random, **options))
    assert chosen == expected
    assert len(set(chosen)) > 1


def test_draws_follow_the_probabilities():
    """Pearson's chi-squared stays below its 1 - 1e-6 quantile; a temperature off by a tenth exceeds it."""
    logits = np.random.default_rng(1).standard_normal(16).astype(np.float32) * 2
    draws = 40_000
    sampler = Sampling(temperature=0.7, top_k=12, seed=5).sampler()
    counts = np.bincount([sampler.choose(logits, EMPTY) for _ in range(draws)], minlength=16)

    def chi_squared(temperature):
        weights = np.where(kept(logits, {"top_k": 12}), np.exp(logits / temperature), 0)
        expected = draws * weights / weights.sum()
        some = expected > 0
        assert not counts[~some].any()
        return ((counts[some] - expected[some]) ** 2 / expected[some]).sum()

    limit = 50.2  # of 11 degrees of freedom
    assert chi_squared(0.7) < limit < chi_squared(0.77)


def test_seeds():
    logits = np.zeros(1000, np.float32)

    def drawn(seed):
        sampler = Sampling(temperature=1.0, seed=seed).sampler()
        return [sampler.choose(logits, EMPTY) for _ in range(20)]

    assert drawn(3) == drawn(3) != drawn(4)
    assert drawn(None) != drawn(None)


@pytest.mark.parametrize("place", [0, 15, 16, 1023, 1024, 149_999])
def test_greedy_finds_the_first_of_the_largest(place):
    logits = np.random.default_rng(0).standard_normal(150_000).astype(np.float32)
    logits[place] = logits[-1] = 9
    logits[1] = np.nan
    assert Sampling().sampler().choose(logits, EMPTY) == place


@pytest.mark.parametrize("temperature", [1e-38, 1e-6])
def test_a_tiny_temperature_takes_the_most_likely(temperature):
    logits = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    sampler = Sampling(temperature=temperature, seed=0).sampler()
    assert {sampler.choose(logits, EMPTY) for _ in range(10)} == {int(logits.argmax())}


@pytest.mark.parametrize(
    "options", [{}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.1}, {"top_k": 500}], ids=str
)
def test_tokens_that_are_ruled_out_are_never_drawn(options):
    """Constrained decoding sets logits to minus infinity; NaN counts alike."""
    logits = np.full(3000, -np.inf, np.float32)
    logits[[7, 2000, 2999]] = 1, 2, 1.5
    logits[[0, 5]] = np.nan
    sampler = Sampling(temperature=3.0, seed=0, **options).sampler()
    assert {sampler.choose(logits, EMPTY) for _ in range(200)} <= {7, 2000, 2999}


@pytest.mark.parametrize("value", [np.nan, -np.inf, np.inf])
def test_logits_without_a_number_are_refused(value):
    with pytest.raises(ValueError, match="finite"):
        Sampling(temperature=1.0).sampler().choose(np.full(20, value, np.float32), EMPTY)


def test_the_native_sampler_refuses_what_it_cannot_use():
    logits = np.zeros(10, np.float32)
    for recent in ([10], [-1]):
        with pytest.raises(ValueError, match="token"):
            _native.Sampler().choose(logits, np.array(recent, np.int32))
    with pytest.raises(ValueError, match="finite"):
        _native.Sampler().choose(np.zeros(0, np.float32), EMPTY)
    with pytest.raises(ValueError, match="range"):
        _native.Sampler(top_p=math.nan)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature is out of range: found -0.1; allowed: 0 or more"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"min_p": -0.5}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"repetition_window": -64}, "repetition_window"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(EngineError, match=message):
        Sampling(**options)


def test_read_bandwidth_is_that_of_memory_and_not_of_a_loop_left_out():
    """Between 0.1 and 1000 GB/s, whatever the machine: its size and unit are right."""
    found = _native.read_bandwidth(64 << 20, 2, 2)
    assert 1e8 < found < 1e12
    with pytest.raises(ValueError, match="nothing to read"):
        _native.read_bandwidth(100, 0)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_a_batch_of_choices_is_what_each_sampler_would_choose_alone(served, threads, count):
    engine = open_engine(served.path, threads=threads, context=16)
    rng = np.random.default_rng(count)
    options = [OPTIONS[i % len(OPTIONS)] for i in range(count)]
    together, alone = ([Sampling(seed=i, **o).sampler() for i, o in enumerate(options)] for _ in range(2))
    for _ in range(10):
        logits = (rng.standard_normal((count, 5000)) * 3).astype(np.float32)
        recents = [rng.integers(0, 5000, rng.integers(0, 70)).astype(np.int32) for _ in range(count)]
        expected = [
            sampler.choose(row, recent) for sampler, row, recent in zip(alone, logits, recents, strict=True)
        ]
        assert engine.choose(together, logits, recents) == expected


def test_a_batch_tells_which_logits_are_no_numbers_and_chooses_by_the_others(served):
    engine = open_engine(served.path, threads=2, context=16)
    logits = np.zeros((3, 50), np.float32)
    logits[0, 7] = logits[2, 9] = 1
    logits[1] = np.nan
    samplers = [Sampling().sampler() for _ in range(3)]

    assert engine.choose(samplers, logits, [EMPTY] * 3) == [7, -1, 9]
    assert engine.choose([], np.zeros((0, 50), np.float32), []) == []


def test_a_batch_that_does_not_fit_together_is_refused(served):
    engine = open_engine(served.path, threads=2, context=16)
    logits = np.zeros((2, 50), np.float32)
    one, other = Sampling().sampler(), Sampling().sampler()
    for samplers, recents in (
        ([one], [EMPTY] * 2),
        ([one, other], [EMPTY]),
        ([one, one], [EMPTY] * 2),
        ([one, other], [EMPTY, np.array([50], np.int32)]),
        ([one, other], [EMPTY, np.array([-1], np.int32)]),
    ):
        with pytest.raises(EngineError, match="no tokens can be chosen"):
            engine.choose(samplers, logits, recents)


def test_one_engine_may_be_used_by_several_threads(served):
    """Steps, copies and choices wait for each other; each thread's sequence gets what it gets alone."""
    engine = open_engine(served.path, threads=2, context=64, sequences=4)
    prompt = [5, 6, 7, 8]
    expected = served.greedy(prompt, 20)

    def write(sequence):
        tokens = list(prompt)
        logits = engine.step([sequence] * 4, prompt, [3])
        for _ in range(20):
            tokens += engine.choose([Sampling().sampler()], logits, [EMPTY])
            logits = engine.step([sequence], tokens[-1:], [0])
        return tokens[4:]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(write, range(4))) == [expected] * 4
