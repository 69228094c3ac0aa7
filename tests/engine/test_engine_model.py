"""Texts that the engine writes: the loop of decoding, streams, stops, what is kept between texts, and speculation."""

import gc
import subprocess
import sys
import weakref
from dataclasses import replace

import numpy as np
import pytest

import fewbits
from fewbits.engine.model import load
from fewbits.engine.prompt_lookup import MOST, PromptLookup
from fewbits.errors import EngineError, EvaluationError

PROMPT = "Few bits, same model"
CONTEXT = 512


@pytest.fixture(scope="module")
def path(tiny_llama, tmp_path_factory):
    output = tmp_path_factory.mktemp("engine") / "tiny.gguf"
    fewbits.quantize(tiny_llama, output, format="Q8_0")
    return output


@pytest.fixture
def model(path):
    return load(path, threads=2, context=CONTEXT)


class Watched:
    """The engine, with what goes through it noted down, and failures where they are wanted."""

    def __init__(self, engine):
        self._engine = engine
        self.steps = []
        self.fail = None

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def step(self, sequences, tokens, wanted):
        logits = self._engine.step(sequences, tokens, wanted)
        self.steps.append(len(tokens))
        if self.fail is not None:
            failure, self.fail = self.fail, None
            raise failure
        return logits


@pytest.fixture
def watched(model):
    engine = Watched(model.engine)
    return type(model)(engine, model.path), engine


def greedy(model, prompt, count):
    """By the definition: all of the text through the model for every token."""
    ids = model.encode(prompt)
    for _ in range(count):
        ids.append(int(model.logits(ids)[-1].argmax()))
    return ids[-count:]


def test_greedy_takes_the_most_likely_token(path, model):
    result = load(path, threads=1, context=CONTEXT).generate(PROMPT, 24)

    assert list(result.ids) == greedy(model, PROMPT, 24)
    decoded = model.tokenizer.decode([*model.encode(PROMPT), *result.ids])[len(PROMPT) :]
    assert result.text.rstrip("\ufffd") == decoded.rstrip("\ufffd")  # the last character may lack bytes
    assert (result.tokens, result.stopped, result.runtime) == (24, "length", "engine")
    assert result.prompt_tokens == len(model.encode(PROMPT))
    assert 0 < result.seconds_to_first_token < result.seconds
    assert result.tokens_per_second > 0


def test_outputs_are_the_same_for_any_number_of_threads(path):
    """Drawn ones too, since the most likely tokens of random weights repeat themselves."""
    models = [load(path, threads=threads, context=CONTEXT) for threads in (1, 2, 3)]
    plain = [model.generate(PROMPT, 300).ids for model in models]
    varied = [model.generate(PROMPT, 300, temperature=3.0, seed=0).ids for model in models]

    assert len(plain[0]) == len(varied[0]) == 300
    assert len(set(varied[0])) > 50
    assert plain[0] == plain[1] == plain[2]
    assert varied[0] == varied[1] == varied[2]


def test_sampling_follows_the_seed(model):
    ids = [model.generate(PROMPT, 20, temperature=1.0, top_k=50, seed=seed).ids for seed in (3, 3, 4)]

    assert ids[0] == ids[1] != ids[2]


def test_repetitions_are_made_unlikely(model):
    plain = model.generate(PROMPT, 200)
    varied = model.generate(PROMPT, 200, repetition_penalty=1.5, repetition_window=200)

    assert len(set(varied.ids)) > len(set(plain.ids))


def test_pieces_join_to_the_text(model):
    answer = model.stream(PROMPT, 80, temperature=1.5, seed=1)
    pieces = list(answer)

    assert len(pieces) > 10
    assert "".join(pieces) == answer.generation.text


def test_a_text_ends_before_a_stop_string_that_spans_tokens(model):
    whole = model.generate(PROMPT, 60)
    texts = [model.tokenizer.token_bytes(token).decode("utf-8", "replace") for token in whole.ids]
    place = next(i for i in range(10, 59) if len(texts[i]) > 1 and len(texts[i + 1]) > 1)
    stop = texts[place][-1] + texts[place + 1][:1]  # the end of one token and the beginning of the next

    result = model.generate(PROMPT, 60, stop=["never", stop])

    assert result.stopped == "stop"
    assert result.text == whole.text[: whole.text.index(stop)]
    assert result.ids == whole.ids[: len(result.ids)]


def test_it_ends_at_the_models_end_token(model):
    whole = model.generate(PROMPT, 40)
    end = next(token for token in reversed(whole.ids) if token not in whole.ids[:5])
    model.tokenizer = replace(model.tokenizer, eos_ids=frozenset({end}))

    result = model.generate(PROMPT, 40)

    assert result.stopped == "end"
    assert result.ids == whole.ids[: whole.ids.index(end)]


def test_it_stops_when_the_context_is_full(path):
    result = load(path, context=40).generate(PROMPT, 500)

    assert result.prompt_tokens + result.tokens == 40
    assert result.stopped == "context"


def test_what_a_prompt_shares_with_the_text_before_it_is_not_computed_again(watched):
    model, engine = watched
    first = model.generate(PROMPT, 20)
    engine.steps.clear()

    second = model.generate([*model.encode(PROMPT), *first.ids, 5, 6], 10)

    held = first.prompt_tokens + 19  # the last token was never fed
    assert second.cached_tokens == held
    assert engine.steps[0] == 3
    alone = load(model.path, threads=1, context=CONTEXT).generate(
        [*model.encode(PROMPT), *first.ids, 5, 6], 10
    )
    assert (second.ids, alone.cached_tokens) == (alone.ids, 0)
    assert model.generate([7, 8, 9], 5).cached_tokens == 0


def test_a_prompt_again_costs_one_token(watched):
    model, engine = watched
    first = model.generate(PROMPT, 5)
    engine.steps.clear()

    assert model.generate(PROMPT, 5).ids == first.ids
    assert engine.steps == [1, 1, 1, 1, 1]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, EngineError])
def test_after_a_step_that_was_cut_short_texts_are_right(watched, failure):
    """Ctrl-C is heard after the step was taken, before anything knows of it."""
    model, engine = watched
    whole = model.generate(PROMPT, 20)
    answer = model.stream(PROMPT, 20)
    given = next(answer)
    engine.fail = failure("cut short")
    with pytest.raises(failure):
        answer.finish()

    assert answer.generation.stopped == "reader"
    assert answer.generation.text.startswith(given)
    assert model.generate(PROMPT, 20).ids == whole.ids


def test_two_streams_may_take_turns(model):
    prompts = [PROMPT, "Another text"]
    alone = [model.generate(prompt, 15).text for prompt in prompts]
    streams = [model.stream(prompt, 15) for prompt in prompts]

    texts = ["", ""]
    for _ in range(15):
        for i, stream in enumerate(streams):
            texts[i] += next(stream, "")

    assert texts == alone


REPETITIVE = "one two three four five, one two three four five, one two three"


@pytest.mark.parametrize("options", [{}, {"temperature": 0.5, "top_k": 20, "seed": 1}], ids=str)
@pytest.mark.parametrize("prompt", [PROMPT, REPETITIVE])
def test_speculation_changes_nothing_but_the_number_of_steps(watched, prompt, options):
    model, engine = watched
    plain = model.generate(prompt, 200, **options)
    engine.steps.clear()

    fast = model.generate(prompt, 200, speculate=True, **options)

    assert fast.ids == plain.ids
    assert max(engine.steps[1:]) <= MOST + 1
    assert fast.guessed_tokens >= fast.accepted_tokens
    # Every step gives one token, and one more for each right guess; guesses after the last token don't count.
    assert len(engine.steps) == 200 - fast.accepted_tokens
    if not options:
        assert fast.accepted_tokens > 20


def test_speculation_ends_with_the_context(path):
    small = load(path, context=60)
    results = [small.generate(REPETITIVE, 500, speculate=speculate) for speculate in (False, True)]

    assert results[0].ids == results[1].ids
    assert results[1].stopped == "context"


def test_guesses_are_what_followed_before():
    lookup = PromptLookup()
    assert lookup.guess([1, 2, 3], 7) == []
    assert lookup.guess([1, 2, 3, 4, 5, 1, 2], 7) == [3, 4, 5]
    lookup.report(3, 3)
    assert lookup.guess([1, 2, 3, 4, 5, 1, 2, 3, 4, 5], 2) == [1, 2]
    assert lookup.guess([1, 2, 3, 4, 5, 1, 2, 3, 4, 5], 7) == [1, 2, 3, 4, 5, 1, 2]
    lookup.report(7, 0)
    assert lookup.guess([1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 6, 4, 5], 7) == [6]


def test_logits_after_every_token(path, model):
    ids = np.random.default_rng(0).integers(0, 384, 300).tolist()
    logits = model.logits(ids)

    assert logits.shape == (300, 384)
    assert logits.dtype == np.float32
    assert np.array_equal(load(path, threads=1, context=CONTEXT).logits(ids[:7]), logits[:7])
    assert np.array_equal(model.logits(ids[:50]), logits[:50])  # in place of what was there


def test_a_conversation_in_the_models_markup(model):
    with pytest.raises(EvaluationError, match="no chat template"):
        model.generate("hello", 3, chat=True)
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}[answer]"
    model.tokenizer = replace(model.tokenizer, chat_template=template)

    said = [{"role": "system", "content": "short"}, {"role": "user", "content": "hello"}]
    assert model.chat_prompt(said) == "[system] short [user] hello [answer]"
    assert model.generate("hello", 3, chat=True).ids == model.generate("[user] hello [answer]", 3).ids


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {}, "prompt is empty"),
        ([], {}, "prompt is empty"),
        ([384], {}, "no such token: found 384; allowed: 0 to 383"),
        ([-1], {}, "no such token"),
        ([1] * CONTEXT, {}, "prompt is too long: found 512 tokens; allowed: up to 511"),
        ([1], {"chat": True}, "token ids"),
        ("a", {"max_tokens": 0}, "something to write"),
        ("a", {"stop": ["b", ""]}, "stop string is empty"),
        ("a", {"temperature": -1.0}, "temperature is out of range"),
    ],
)
def test_refused(model, prompt, options, message):
    with pytest.raises(EngineError, match=message):
        model.generate(prompt, **options)


def test_the_engine_goes_with_its_model(path):
    """At once, without the garbage collector, even if a text was left unfinished."""
    gc.disable()
    try:
        model = load(path, context=CONTEXT)
        engine = weakref.ref(model.engine)
        answer = model.stream(PROMPT, 20)
        next(answer)
        del answer, model
        assert engine() is None
    finally:
        gc.enable()


def test_nothing_slow_is_imported(path):
    code = (
        "import sys, fewbits\n"
        "fewbits.load(sys.argv[1]).generate('a', 3)\n"
        "print([m for m in ('torch', 'transformers', 'typer', 'rich', 'jinja2', 'gguf') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
