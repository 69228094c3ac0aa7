"""Several answers to one prompt, biases and penalties, as the openai package asks for them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from fewbits.serving.server import Server
from serving_model import Hooked, ServedModel, running, until

MESSAGES: Any = [{"role": "user", "content": "The quick brown fox"}]
LONG: Any = [{"role": "user", "content": "The quick brown fox jumps over the lazy dog. " * 3}]


@pytest.fixture(scope="module")
def server(served: ServedModel) -> Iterator[Server]:
    with running(served, served.engine(4)) as running_server:
        yield running_server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with client_of(server) as made:
        yield made


def client_of(server: Server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)


def tokens(served: ServedModel, client: OpenAI, **fields: Any) -> list[int]:
    """The tokens of an answer, told by its logprobs."""
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, logprobs=True, temperature=0, **fields
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    by_bytes = {served.tokenizer.token_bytes(token): token for token in range(384)}
    return [by_bytes[bytes(entry.bytes or ())] for entry in logprobs.content or ()]


def test_choices_are_what_as_many_requests_with_the_next_seeds_get(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "max_tokens": 12, "temperature": 2.0}
    together = client.chat.completions.create(**asked, n=3, seed=7)
    alone = [client.chat.completions.create(**asked, seed=seed) for seed in (7, 8, 9)]

    assert [choice.index for choice in together.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in together.choices]
    assert texts == [answer.choices[0].message.content for answer in alone]
    assert len(set(texts)) == 3
    usages = [answer.usage for answer in alone if answer.usage]
    assert together.usage is not None
    assert together.usage.prompt_tokens == usages[0].prompt_tokens
    assert together.usage.completion_tokens == sum(usage.completion_tokens for usage in usages)
    assert together.usage.total_tokens == together.usage.prompt_tokens + together.usage.completion_tokens


def test_choices_are_streamed_by_index_and_counted_in_the_end(client: OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "tiny", "messages": MESSAGES, "max_tokens": 10, "temperature": 2.0, "seed": 1, "n": 4,
    }  # fmt: skip
    whole = client.chat.completions.create(**asked)
    texts, ended = [""] * 4, set()
    usage = None
    for chunk in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            assert choice.index not in ended
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                ended.add(choice.index)

    assert texts == [choice.message.content for choice in whole.choices]
    assert ended == {0, 1, 2, 3}
    assert whole.usage is not None
    assert usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_several_prompts_have_their_choices_one_after_another(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 6, "temperature": 2.0, "seed": 5}
    prompts = ["Few bits", "The lazy dog"]
    together = client.completions.create(prompt=prompts, n=2, best_of=2, **asked)
    alone = [client.completions.create(prompt=prompt, n=2, **asked) for prompt in prompts]

    assert [choice.text for choice in together.choices] == [
        choice.text for answer in alone for choice in answer.choices
    ]
    assert together.usage is not None
    assert together.usage.prompt_tokens == sum(a.usage.prompt_tokens for a in alone if a.usage)


def test_a_prompt_is_computed_once_for_all_its_choices(served: ServedModel) -> None:
    fed: list[int] = []
    engine = Hooked(served.engine(4), lambda sequences, tokens: fed.append(len(tokens)))
    with running(served, engine, step_tokens=8) as server, client_of(server) as client:
        answer = client.chat.completions.create(
            model="tiny", messages=LONG, max_tokens=4, n=4, logit_bias={"0": -100}
        )
    assert answer.usage is not None
    prompt = answer.usage.prompt_tokens
    assert prompt > 30

    # The first reads all of it, the others its last token each; the last of four written tokens is never fed.
    assert sum(fed) == prompt + 3 * 1 + 4 * 3


def test_prompts_of_several_clients_that_begin_alike_are_computed_once(served: ServedModel) -> None:
    fed: list[int] = []
    engine = Hooked(served.engine(4), lambda sequences, tokens: fed.append(len(tokens)))
    prefix = served.tokenizer.encode("The quick brown fox jumps over the lazy dog. " * 3)
    prompts = [[*prefix, 40 + i, 41, 42] for i in range(4)]
    with running(served, engine, step_tokens=16) as server:

        async def ask() -> list[Any]:
            async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
                asked = [
                    client.completions.create(
                        model="tiny", prompt=prompt, max_tokens=3, temperature=0, logit_bias={"0": -100},
                        logprobs=0,
                    )
                    for prompt in prompts
                ]  # fmt: skip
                return await asyncio.gather(*asked)

        answers = asyncio.run(ask())

    for prompt, answer in zip(prompts, answers, strict=True):
        expected = served.greedy(prompt, 3, first=1)
        assert answer.choices[0].text == b"".join(map(served.tokenizer.token_bytes, expected)).decode(
            "utf-8", "replace"
        )
    # Whoever came first may have been some steps ahead of the others, but nobody reads the beginning again.
    assert sum(fed) <= len(prefix) + 4 * 3 + 4 * 2 + 3 * 16


def test_the_next_choice_takes_over_when_the_one_that_reads_the_prompt_fails(served: ServedModel) -> None:
    """The first step of the first slot fails; the rest of the request fails with it, the next request doesn't."""
    steps: list[set[int]] = []

    def fail_once(sequences: list[int], _: list[int]) -> None:
        steps.append(set(sequences))
        if len(steps) <= 2:
            raise MemoryError("none left")

    prompt = served.tokenizer.encode("The quick brown fox jumps over the lazy dog. " * 2)
    with running(served, Hooked(served.engine(2), fail_once)) as server:

        async def ask() -> list[Any]:
            async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
                asked = [
                    client.completions.create(model="tiny", prompt=prompt, max_tokens=3, temperature=0)
                    for _ in range(2)
                ]
                return await asyncio.gather(*asked, return_exceptions=True)

        answers = asyncio.run(ask())
        assert until(lambda: server.scheduler.load().running == 0, 10)

    failed = [answer for answer in answers if isinstance(answer, openai.InternalServerError)]
    assert len(failed) == 1
    [answer] = [answer for answer in answers if answer not in failed]
    assert answer.choices[0].finish_reason


def test_a_bias_forbids_a_token_or_makes_it_the_only_one(served: ServedModel, client: OpenAI) -> None:
    usual = tokens(served, client, max_tokens=6)
    without = tokens(served, client, max_tokens=6, logit_bias={str(usual[0]): -100})
    only = tokens(served, client, max_tokens=6, logit_bias={"77": 100})

    assert usual[0] not in without
    assert only == [77] * 6


def test_penalties_are_those_of_openais_formula(served: ServedModel, client: OpenAI) -> None:
    """Against greedy choices from logits of an engine alone, with c * frequency + (c > 0) * presence taken off."""
    prompt = served.tokenizer.encode("<user>The quick brown fox\n<assistant>")
    for frequency, presence in ((2.0, 0.0), (0.0, 2.0), (0.7, 1.1), (-2.0, 0.0)):
        engine = served.engine(1)
        logits = engine.step([0] * len(prompt), prompt, [len(prompt) - 1])
        counts: dict[int, int] = {}
        expected: list[int] = []
        for _ in range(16):
            row = logits[0].copy()
            row[0] -= 100
            for token, count in counts.items():
                row[token] -= count * frequency + presence
            expected.append(int(row.argmax()))
            counts[expected[-1]] = counts.get(expected[-1], 0) + 1
            logits = engine.step([0], [expected[-1]], [0])
        told = tokens(
            served, client, max_tokens=16, logit_bias={"0": -100},
            frequency_penalty=frequency, presence_penalty=presence,
        )  # fmt: skip

        assert told == expected


def test_logprobs_are_the_models_own_whatever_is_done_to_its_choice(client: OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "tiny",
        "prompt": "The",
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": 3,
    }
    usual = client.completions.create(**asked).choices[0].logprobs
    biased = client.completions.create(**asked, logit_bias={"77": 100}).choices[0].logprobs
    assert usual is not None
    assert biased is not None
    assert usual.top_logprobs is not None

    assert biased.top_logprobs == usual.top_logprobs
    assert biased.token_logprobs is not None
    assert biased.token_logprobs[0] < min(usual.top_logprobs[0].values())


def test_more_choices_than_can_wait_are_refused(served: ServedModel) -> None:
    with running(served, served.engine(1), queue_limit=2) as server, client_of(server) as client:
        with pytest.raises(openai.BadRequestError, match="too many choices: found 4; allowed: 3") as caught:
            client.completions.create(model="tiny", prompt=["a", "b"], n=2)
        assert caught.value.param == "n"
        assert len(client.completions.create(model="tiny", prompt="a", n=3, max_tokens=1).choices) == 3
