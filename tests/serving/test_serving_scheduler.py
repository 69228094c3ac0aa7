"""How steps are shared, what slots keep, and who gets on when."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.engine.sampling import Sampling
from fewbits.engine.text_stream import TextStream
from fewbits.serving.completion import Completion, Event, Failed, Finished, Piece, token_logprob
from fewbits.serving.scheduler import QueueFullError, Scheduler, ShuttingDownError, share_step
from fewbits.serving.token_choice import Adjustments, LogitChanges
from serving_model import Hooked, ServedModel, until

VOCABULARY = 384


def completion(prompt: list[int], limit: int = 4) -> tuple[Completion, queue.Queue[Event]]:
    """A greedy one that never writes 0, which would end it."""
    events: queue.Queue[Event] = queue.Queue()
    changes = LogitChanges(Adjustments(bias={0: -1e9}), None, VOCABULARY)
    text = TextStream(lambda token: b"x")
    made = Completion(prompt, limit, Sampling().sampler(), text, frozenset((0,)), events.put, changes)
    return made, events


def finished(events: queue.Queue[Event]) -> Finished:
    while True:
        event = events.get(timeout=30)
        if not isinstance(event, Piece):
            assert isinstance(event, Finished)
            return event


def wait_for(gate: threading.Event) -> None:
    assert gate.wait(30)


@contextmanager
def started(engine: Any, **options: int) -> Iterator[Scheduler]:
    scheduler = Scheduler(engine, **options)
    scheduler.start()
    try:
        yield scheduler
    finally:
        scheduler.close()


@given(st.lists(st.integers(1, 400), min_size=1, max_size=20), st.integers(1, 300))
def test_a_step_has_one_token_of_each_answer_and_prompts_as_far_as_the_budget_goes(
    pending: list[int], budget: int
) -> None:
    completions = [completion([1] * count)[0] for count in pending]
    shares = dict(share_step(completions, budget))
    writing = [one for one in completions if one.pending == 1]
    reading = [one for one in completions if one.pending > 1]

    assert all(shares[one] == 1 for one in writing)
    assert all(0 < count <= one.pending for one, count in shares.items())
    assert list(shares) == [one for one in completions if one in shares]
    if reading:
        room = max(budget - len(writing), len(reading))
        assert sum(shares.get(one, 0) for one in reading) == min(room, sum(one.pending for one in reading))
        assert shares[reading[0]] >= min(reading[0].pending, room // 2)


def test_a_short_prompt_does_not_wait_for_a_long_one_before_it() -> None:
    long, short = completion([1] * 4000)[0], completion([1] * 50)[0]

    assert dict(share_step([long, short], 256)) == {long: 206, short: 50}


def test_reading_a_long_prompt_lets_the_others_write_in_every_step(served: ServedModel) -> None:
    steps: list[dict[int, int]] = []

    def note(sequences: list[int], _: list[int]) -> None:
        steps.append({slot: sequences.count(slot) for slot in sequences})

    with started(Hooked(served.engine(2), note), step_tokens=8) as scheduler:
        writer, writer_events = completion([1, 2], limit=100)
        reader, reader_events = completion([3] * 100, limit=1)
        scheduler.submit([writer, reader])
        finished(reader_events)
        finished(writer_events)
    mixed = [step for step in steps if len(step) == 2]

    assert len(mixed) >= 100 // 7
    assert all(step[0] == 1 for step in steps[1:100])
    assert all(step[1] <= 7 for step in mixed[1:])


def test_a_prefix_that_another_answer_holds_is_copied_and_changes_nothing(served: ServedModel) -> None:
    shared = [int(token) for token in np.random.default_rng(0).integers(1, 380, 60)]
    with started(served.engine(3)) as scheduler:
        first, first_events = completion([*shared, 7], limit=60)
        scheduler.submit([first])
        assert until(lambda: first.written > 2, 10)
        others = [completion([*shared, ending], limit=8) for ending in (7, 8)]
        scheduler.submit([one for one, _ in others])
        told = [finished(events) for _, events in others]
        finished(first_events)
        answers = [one.tokens[len(one.prompt) :] for one, _ in others]

    assert [one.cached_tokens for one in told] == [60, 60]
    assert answers == [served.greedy([*shared, ending], 8, first=1) for ending in (7, 8)]


def test_a_conversation_goes_on_in_its_slot_and_a_new_one_takes_the_longest_unused(
    served: ServedModel,
) -> None:
    used: list[set[int]] = []
    engine = Hooked(served.engine(2), lambda sequences, tokens: used.append(set(sequences)))
    prompts = ([1, 2, 3, 4], [9, 8, 7], [1, 2, 3, 4], [9, 8, 7, 5], [30, 31], [9, 8, 7, 5])
    slots, cached = [], []
    with started(engine) as scheduler:
        for prompt in prompts:
            one, events = completion(prompt, limit=1)
            scheduler.submit([one])
            cached.append(finished(events).cached_tokens)
            slots.append(*used[-1])

    assert slots == [0, 1, 0, 1, 0, 1]
    assert cached == [0, 0, 3, 3, 0, 3]


def test_a_full_queue_takes_all_of_a_request_or_nothing(served: ServedModel) -> None:
    gate = threading.Event()
    engine = Hooked(served.engine(1), lambda *_: wait_for(gate))
    with started(engine, queue_limit=2) as scheduler:
        running, events = completion([1, 2])
        scheduler.submit([running])
        assert until(lambda: scheduler.load().running == 1, 10)
        waiting, waiting_events = completion([3, 4])
        scheduler.submit([waiting])
        with pytest.raises(QueueFullError, match="1 requests waiting") as caught:
            scheduler.submit([completion([5])[0], completion([6])[0]])
        scheduler.submit([completion([5])[0]])
        with pytest.raises(QueueFullError):
            scheduler.check_room(1)
        assert 1 <= caught.value.retry_after <= 60
        gate.set()
        finished(events)
        finished(waiting_events)


def test_closing_without_finishing_tells_those_who_wait(served: ServedModel) -> None:
    gate = threading.Event()
    engine = Hooked(served.engine(1), lambda *_: wait_for(gate))
    scheduler = Scheduler(engine)
    scheduler.start()
    told = [completion([1, 2]) for _ in range(3)]
    scheduler.submit([one for one, _ in told])
    assert until(lambda: scheduler.load().running == 1, 10)
    closing = threading.Thread(target=scheduler.close, kwargs={"finish": False})
    closing.start()
    failures = [events.get(timeout=10) for _, events in told]
    gate.set()
    closing.join(30)

    assert all(isinstance(event, Failed) for event in failures)
    assert {type(event.error) for event in failures if isinstance(event, Failed)} == {ShuttingDownError}
    with pytest.raises(ShuttingDownError):
        scheduler.submit([completion([1])[0]])


def test_an_engine_that_always_fails_fails_every_request_and_no_more(served: ServedModel) -> None:
    broken = [True]

    def fail(*_: list[int]) -> None:
        if broken[0]:
            raise RuntimeError("no")

    with started(Hooked(served.engine(2), fail)) as scheduler:
        told = [completion([1, 2, 3]) for _ in range(5)]
        scheduler.submit([one for one, _ in told])
        assert all(isinstance(events.get(timeout=10), Failed) for _, events in told)
        broken[0] = False
        one, events = completion([1, 2, 3])
        scheduler.submit([one])
        assert finished(events).written_tokens == 4
    assert one.tokens[3:] == served.greedy([1, 2, 3], 4, first=1)


def test_logprobs_are_those_of_softmax_and_never_infinite() -> None:
    logits = np.array([1.0, -np.inf, 3.0, 2.0, 3.0], np.float32)
    told = token_logprob(logits, 3, 3)
    weights = np.exp(logits.astype(np.float64))

    assert told.logprob == pytest.approx(np.log(weights[3] / weights.sum()))
    assert [token for token, _ in told.top] == [2, 4, 3]
    assert token_logprob(logits, 1, 9).logprob == -9999.0
    assert token_logprob(logits, 1, 0).top == ()


def test_serving_needs_neither_torch_nor_transformers() -> None:
    code = "import sys, fewbits.serving.open_server; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"
