"""What goes wrong around a server: crowds, clients that leave, an engine that fails, a shutdown."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
from collections import Counter
from collections.abc import Coroutine
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import openai
import pytest
from jinja2 import Environment
from openai import AsyncOpenAI, OpenAI

from fewbits.serving.completion import Completion
from fewbits.serving.server import Server
from serving_model import Hooked, ServedModel, call, load, running, slow, until

CLIENTS = 200
PROMPTS = ("The quick brown fox", "def quantize(weight)", "Few bits, same", "1234 times.\n")


def client_of(server: Server, **options: Any) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="any", **{"max_retries": 0, **options})


def asked(i: int, **more: Any) -> dict[str, Any]:
    prompt = f"{PROMPTS[i % len(PROMPTS)]} {i % 3}"
    return {"model": "tiny", "prompt": prompt, "max_tokens": 3 + i % 5, "temperature": 0, **more}


async def crowd(server: Server, retries: int) -> list[Any]:
    """What each of many clients at once gets, every other one of them as a stream."""
    async with AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="any", max_retries=retries, timeout=300
    ) as client:

        async def one(i: int) -> tuple[str, str | None]:
            if i % 2:
                choice = (await client.completions.create(**asked(i))).choices[0]
                return choice.text, choice.finish_reason
            text, reason = "", None
            async for chunk in await client.completions.create(**asked(i, stream=True)):
                text += chunk.choices[0].text
                reason = chunk.choices[0].finish_reason or reason
            return text, reason

        waiting: list[Coroutine[Any, Any, Any]] = [one(i) for i in range(CLIENTS)]
        return list(await asyncio.gather(*waiting, return_exceptions=True))


@pytest.fixture(scope="module")
def alone(served: ServedModel) -> list[tuple[str, str | None]]:
    """What each of them gets when there is no other."""
    answers: dict[tuple[Any, ...], tuple[str, str | None]] = {}
    with running(served, served.engine(1)) as server, client_of(server) as client:
        for i in range(CLIENTS):
            fields = asked(i)
            key = tuple(fields.values())
            if key not in answers:
                choice = client.completions.create(**fields).choices[0]
                answers[key] = choice.text, choice.finish_reason
    return [answers[tuple(asked(i).values())] for i in range(CLIENTS)]


Answers = list[tuple[str, str | None]]


def test_many_clients_at_once_all_get_what_each_would_get_alone(served: ServedModel, alone: Answers) -> None:
    with running(served, served.engine(8), queue_limit=CLIENTS) as server:
        answers = asyncio.run(crowd(server, 0))
        left = load(server)

    assert answers == alone
    assert left == {"status": "ok", "running": 0, "waiting": 0, "slots": 8}


def test_with_a_short_queue_each_client_is_served_or_told_when_to_come_back(
    served: ServedModel, alone: Answers
) -> None:
    with running(served, slow(served.engine(4), 0.01), queue_limit=8) as server:
        answers = asyncio.run(crowd(server, 0))
        refused = [answer for answer in answers if isinstance(answer, openai.RateLimitError)]
        served_ones = [answer for answer in answers if isinstance(answer, tuple)]

    assert len(refused) + len(served_ones) == CLIENTS
    assert len(served_ones) >= 12
    assert refused
    assert not Counter(served_ones) - Counter(alone)
    for error in refused:
        assert error.code == "queue_full"
        assert "Try again in" in error.message
        assert 1 <= int(error.response.headers["retry-after"]) <= 60


def stream_of(server: Server, **fields: Any) -> tuple[HTTPConnection, Any]:
    """A connection that has read the first lines of a stream, or that waits where `fields` ask for none."""
    address = urlsplit(server.url)
    connection = HTTPConnection(address.hostname or "", address.port, timeout=30)
    body = json.dumps({"model": "tiny", "prompt": "The", "max_tokens": 120, "temperature": 0, **fields})
    connection.request("POST", "/v1/completions", body)
    return connection, connection.getresponse() if fields.get("stream") else None


def never_ending(engine: Any, seconds: float = 0.05) -> Hooked:
    """An engine that is slow and never chooses the token that ends an answer (0)."""

    def without_end(logits: Any) -> Any:
        logits = np.array(logits)
        logits[:, 0] = -np.inf
        return logits

    hooked = slow(engine, seconds)
    hooked._after = without_end
    return hooked


def test_a_client_that_leaves_in_mid_stream_frees_its_slot_at_once(served: ServedModel) -> None:
    with running(served, never_ending(served.engine(1))) as server, client_of(server) as client:
        connection, answer = stream_of(server, stream=True)
        assert answer.readline().startswith(b"data: ")
        assert load(server)["running"] == 1
        answer.close()
        connection.close()

        # alone it would write for 120 steps of 50 ms
        assert until(lambda: load(server)["running"] == 0, 1.0)
        assert client.completions.create(**asked(0)).choices[0].text


def test_clients_that_leave_while_they_wait_or_before_their_first_token_are_forgotten(
    served: ServedModel,
) -> None:
    with running(served, never_ending(served.engine(1)), step_tokens=2) as server:
        busy, _ = stream_of(server)
        reading, _ = stream_of(server, prompt="quick fox " * 20, stream=False)
        waiting, _ = stream_of(server)
        assert until(lambda: load(server) == {"status": "ok", "running": 1, "waiting": 2, "slots": 1}, 5)
        waiting.close()
        assert until(lambda: load(server)["waiting"] == 1, 1.0)
        busy.close()
        assert until(lambda: load(server)["waiting"] == 0, 1.0)
        reading.close()
        assert until(lambda: load(server)["running"] == 0, 1.0)


def test_an_answer_does_not_wait_for_the_clients_word_on_the_last_packet(served: ServedModel) -> None:
    """Nagle's algorithm and delayed acknowledgements would make 40 ms of each."""
    seconds = []
    with running(served, served.engine(1)) as server:
        address = urlsplit(server.url)
        connection = HTTPConnection(address.hostname or "", address.port, timeout=60)
        for _ in range(20):
            start = time.perf_counter()
            connection.request("GET", "/v1/models")
            connection.getresponse().read()
            seconds.append(time.perf_counter() - start)
        connection.close()

    assert min(seconds[5:]) < 0.025


def alive(kind: type) -> int:
    return sum(issubclass(type(known), kind) for known in gc.get_objects())


def test_what_has_ended_is_free_without_the_garbage_collector(served: ServedModel) -> None:
    """It comes the more rarely the more there is, and doesn't know how large samplers and constraints are."""
    message = [{"role": "user", "content": "Hi"}]

    def ask(client: OpenAI) -> None:
        chat = client.chat.completions
        fields: Any = {"model": "tiny", "messages": message, "max_tokens": 4, "temperature": 1.0}
        chat.create(**fields, n=3)
        list(chat.create(**fields, stream=True))
        chat.create(**fields, response_format={"type": "json_object"})
        with pytest.raises(openai.BadRequestError):
            chat.create(**fields | {"temperature": -1})
        stream = chat.create(**fields | {"max_tokens": 100}, stream=True)
        next(iter(stream))
        stream.close()

    with running(served, slow(served.engine(2), 0.001)) as server, client_of(server) as client:
        ask(client)
        gc.collect()
        before = alive(Environment)
        gc.disable()
        try:
            ask(client)
            assert until(lambda: load(server)["running"] == 0, 5)
            assert until(lambda: alive(Completion) == 0, 5)
            assert alive(Environment) == before
        finally:
            gc.enable()


POISON = 77  # a token id that the engine below can't stand


def allergic(engine: Any) -> Hooked:
    def refuse(_: list[int], tokens: list[int]) -> None:
        if POISON in tokens:
            raise MemoryError("no room for this token")

    return Hooked(engine, refuse)


def test_a_step_that_fails_ends_only_the_request_that_it_fails_for(
    served: ServedModel, alone: Answers
) -> None:
    with running(served, allergic(slow(served.engine(4)))) as server:

        async def mixed() -> tuple[list[Any], list[Any]]:
            async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
                good = [client.completions.create(**asked(i)) for i in range(16)]
                bad = [client.completions.create(model="tiny", prompt=[5, 6, POISON, i]) for i in range(4)]
                answers = await asyncio.gather(*good, *bad, return_exceptions=True)
                return answers[:16], answers[16:]

        good, bad = asyncio.run(mixed())
        after = load(server)

    assert [(answer.choices[0].text, answer.choices[0].finish_reason) for answer in good] == alone[:16]
    assert all(isinstance(error, openai.InternalServerError) for error in bad)
    assert {error.code for error in bad} == {"answer_failed"}
    assert after["running"] == after["waiting"] == 0


def test_a_failure_in_mid_stream_is_told_in_the_stream(served: ServedModel) -> None:
    steps: list[int] = []

    def fail_later(_: list[int], tokens: list[int]) -> None:
        steps.append(len(tokens))
        if len(steps) > 5:
            raise RuntimeError("the machine is on fire")

    with running(served, Hooked(served.engine(1), fail_later)) as server, client_of(server) as client:
        parts = client.completions.create(model="tiny", prompt="The", max_tokens=60, seed=1, stream=True)
        with pytest.raises(openai.APIError, match="failed to compute an answer"):
            list(parts)


def test_logits_that_are_no_numbers_end_one_answer_and_the_next_is_served(served: ServedModel) -> None:
    broken = [True]

    def spoil(logits: Any) -> Any:
        return np.full_like(logits, np.nan) if broken[0] else logits

    with running(served, Hooked(served.engine(1), after=spoil)) as server, client_of(server) as client:
        with pytest.raises(openai.InternalServerError):
            client.completions.create(**asked(0))
        broken[0] = False
        assert client.completions.create(**asked(0)).choices[0].finish_reason


def refuses(server: Server) -> bool:
    """Whether nothing listens there any more."""
    try:
        call(server, "GET", "/health")
    except ConnectionRefusedError:
        return True
    except (OSError, HTTPException):
        pass  # it is closing
    return False


def assert_set(event: threading.Event) -> None:
    assert event.wait(30)


def test_what_was_accepted_is_finished_before_the_server_ends(served: ServedModel, alone: Answers) -> None:
    answers: list[Any] = []
    all_there = threading.Event()
    engine = Hooked(served.engine(2), lambda sequences, tokens: assert_set(all_there))
    with running(served, engine) as server:

        def ask(i: int) -> None:
            with client_of(server) as client:
                if i % 2:
                    choice = client.completions.create(**asked(i)).choices[0]
                    answers.append((i, choice.text, choice.finish_reason))
                    return
                chunks = [chunk.choices[0] for chunk in client.completions.create(**asked(i, stream=True))]
                answers.append((i, "".join(chunk.text for chunk in chunks), chunks[-1].finish_reason))

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        assert until(lambda: load(server)["running"] + load(server)["waiting"] == 8, 30)
        server.stop()
        all_there.set()
        for thread in threads:
            thread.join(60)
        refused = until(lambda: refuses(server), 30)

    assert sorted(answers) == [(i, *alone[i]) for i in range(8)]
    assert refused


def test_a_port_that_is_taken_is_said_so(served: ServedModel) -> None:
    from fewbits.errors import ServingError
    from fewbits.serving.server import ServerOptions

    with running(served, served.engine(1)) as server:
        port = urlsplit(server.url).port or 0
        with pytest.raises(ServingError, match=rf"can't listen at 127.0.0.1:{port}.*Choose another"):
            Server(served.engine(1), served.tokenizer, "tiny", ServerOptions(port=port))
