"""The server as the openai package sees it: answers, streams, usage, and refusals in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from openai import OpenAI

from fewbits.engine.text_stream import TextStream
from fewbits.serving.server import Server
from serving_model import CONTEXT, Hooked, ServedModel, call, running

MESSAGES: Any = [{"role": "user", "content": "The quick brown fox"}]
TEXT = "<user>The quick brown fox\n<assistant>"


@pytest.fixture(scope="module")
def server(served: ServedModel) -> Iterator[Server]:
    with running(served, served.engine(3), body_limit=1 << 16) as running_server:
        yield running_server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as made:
        yield made


def greedy_text(served: ServedModel, prompt: str, count: int) -> str:
    tokens = served.greedy(served.tokenizer.encode(prompt), count)
    return b"".join(map(served.tokenizer.token_bytes, tokens)).decode("utf-8", "replace")


def test_a_conversation_is_continued_greedily_as_the_engine_alone_does(
    served: ServedModel, client: OpenAI
) -> None:
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=12, temperature=0)
    expected = greedy_text(served, TEXT, 12)
    choice, usage = answer.choices[0], answer.usage

    assert choice.message.role == "assistant"
    assert choice.message.content is not None
    assert expected.startswith(choice.message.content)
    assert len(expected) - len(choice.message.content) <= 1  # a character that isn't whole
    assert choice.finish_reason == "length"
    assert usage is not None
    prompt_tokens = len(served.tokenizer.encode(TEXT))
    assert (usage.prompt_tokens, usage.completion_tokens) == (prompt_tokens, 12)
    assert usage.total_tokens == prompt_tokens + 12


def test_a_stream_is_the_whole_answer_in_parts_and_tells_usage_at_the_end(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "max_tokens": 12, "seed": 3}
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    *parts, last = chunks

    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
    assert [part.choices[0].delta.role for part in parts][:2] == ["assistant", None]
    assert [part.choices[0].finish_reason for part in parts if part.choices[0].finish_reason] == ["length"]
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert all(part.usage is None for part in parts)
    assert last.choices == []
    assert last.usage is not None
    assert whole.usage is not None
    assert last.usage.completion_tokens == whole.usage.completion_tokens


@pytest.mark.parametrize("ids", [False, True])
def test_a_text_or_its_token_ids_are_continued(served: ServedModel, client: OpenAI, ids: bool) -> None:
    text = "Few bits, same"
    prompt: Any = served.tokenizer.encode(text) if ids else text
    answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=8, temperature=0)

    assert greedy_text(served, text, 8).startswith(answer.choices[0].text)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8


def test_several_prompts_get_their_answers_by_index(client: OpenAI) -> None:
    prompts = ["Few bits", "The lazy dog", "def quantize", "1234 times", "Few bits"]
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 5, "temperature": 0}
    together = client.completions.create(prompt=prompts, **asked)
    alone = [client.completions.create(prompt=prompt, **asked).choices[0].text for prompt in prompts]
    streamed = [""] * len(prompts)
    for chunk in client.completions.create(prompt=prompts, stream=True, **asked):
        streamed[chunk.choices[0].index] += chunk.choices[0].text

    assert [choice.index for choice in together.choices] == list(range(len(prompts)))
    assert [choice.text for choice in together.choices] == alone == streamed


def test_a_stop_string_ends_the_answer_and_is_no_part_of_it(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": "The lazy dog", "max_tokens": 40, "temperature": 2}
    texts = {seed: client.completions.create(**asked, seed=seed).choices[0].text for seed in range(4)}
    asked["seed"], text = max(texts.items(), key=lambda entry: len(entry[1]))
    stop = text[10:14]
    assert len(stop) == 4
    stopped = client.completions.create(**asked, stop=["never to be seen", stop]).choices[0]
    chunks = list(client.completions.create(**asked, stop=stop, stream=True))

    assert stopped.finish_reason == "stop"
    assert stopped.text == text[: text.index(stop)]
    assert "".join(chunk.choices[0].text for chunk in chunks) == stopped.text
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_the_same_seed_gives_the_same_answer_and_another_one_another(client: OpenAI) -> None:
    def answer(seed: int) -> str:
        asked = {"model": "tiny", "prompt": "The", "max_tokens": 24, "temperature": 2.0, "seed": seed}
        return str(client.completions.create(**asked).choices[0].text)  # type: ignore[call-overload]

    assert answer(1) == answer(1)
    assert len({answer(seed) for seed in range(4)}) > 1


def test_logprobs_are_of_each_token_and_of_the_likeliest_in_its_place(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 6, "temperature": 0}
    chat = client.chat.completions.create(messages=MESSAGES, logprobs=True, top_logprobs=3, **asked)
    logprobs = chat.choices[0].logprobs
    assert logprobs is not None
    content = logprobs.content
    assert content is not None
    told = b"".join(bytes(entry.bytes or ()) for entry in content).decode("utf-8", "replace")
    text = client.completions.create(prompt=TEXT, logprobs=2, **asked).choices[0]

    assert chat.choices[0].message.content
    assert told.startswith(chat.choices[0].message.content)
    assert len(content) == 6
    for entry in content:
        assert entry.logprob == entry.top_logprobs[0].logprob
        assert [likely.logprob for likely in entry.top_logprobs] == sorted(
            (likely.logprob for likely in entry.top_logprobs), reverse=True
        )
        assert len(entry.top_logprobs) == 3
    assert text.logprobs is not None
    assert text.logprobs.token_logprobs == [entry.logprob for entry in content]


def test_what_a_slot_holds_already_is_not_computed_again(served: ServedModel) -> None:
    fed: list[int] = []

    engine = Hooked(served.engine(2), lambda sequences, tokens: fed.append(len(tokens)))
    with running(served, engine) as server, OpenAI(base_url=f"{server.url}/v1", api_key="x") as client:
        asked: dict[str, Any] = {"model": "tiny", "max_tokens": 4, "temperature": 0}
        first = client.chat.completions.create(messages=MESSAGES, **asked)
        read = sum(fed)
        fed.clear()
        answer = first.choices[0].message.content
        longer = [*MESSAGES, {"role": "assistant", "content": answer}, {"role": "user", "content": "and?"}]
        second = client.chat.completions.create(messages=longer, **asked)
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    cached = second.usage.prompt_tokens_details.cached_tokens or 0

    assert read == first.usage.prompt_tokens + 3
    assert cached >= first.usage.prompt_tokens - 1
    assert sum(fed) == second.usage.prompt_tokens + 3 - cached


def logprobs_of(served: ServedModel, tokens: list[int]) -> list[float]:
    """Of each token but the first, by an engine of its own, in float64."""
    engine = served.engine(1, context=256)
    logits = engine.step([0] * len(tokens), tokens, list(range(len(tokens)))).astype(np.float64)
    normalized = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return [float(row[token]) for row, token in zip(normalized, tokens[1:], strict=False)]


def test_a_prompt_is_echoed_with_the_logprobs_of_its_tokens(served: ServedModel, client: OpenAI) -> None:
    """As programs ask that measure a model by the likelihood of texts."""
    tokens = served.tokenizer.encode("The quick brown fox jumps over the lazy dog. " * 2)[: CONTEXT - 4]
    for limit in (0, 1, 3):
        asked: dict[str, Any] = {"model": "tiny", "prompt": tokens, "max_tokens": limit, "temperature": 0}
        choice = client.completions.create(**asked, echo=True, logprobs=2).choices[0]
        assert choice.logprobs is not None
        told = choice.logprobs.token_logprobs or []
        written = served.greedy(tokens, limit) if limit else []
        texts = [served.tokenizer.token_bytes(token).decode("utf-8", "replace") for token in tokens + written]

        assert told[0] is None
        assert told[1:] == pytest.approx(logprobs_of(served, tokens + written), abs=1e-4)
        assert choice.logprobs.tokens == texts
        assert choice.logprobs.text_offset == [len("".join(texts[:i])) for i in range(len(texts))]
        assert choice.logprobs.top_logprobs is not None
        assert choice.logprobs.top_logprobs[0] is None
        assert {len(top) for top in choice.logprobs.top_logprobs[1:]} <= {1, 2}
        assert choice.finish_reason == "length"
        assert choice.text.startswith("The quick brown fox")


def test_an_echo_is_streamed_like_the_rest_and_needs_no_logprobs(client: OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "tiny",
        "prompt": ["The fox", "Few bits"],
        "max_tokens": 4,
        "temperature": 0,
    }
    plain = client.completions.create(**asked)
    echoed = client.completions.create(**asked, echo=True)
    texts = ["", ""]
    logprobs = [0, 0]
    for chunk in client.completions.create(**asked, echo=True, logprobs=0, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            logprobs[choice.index] += len(choice.logprobs.tokens or ()) if choice.logprobs else 0

    for i, prompt in enumerate(asked["prompt"]):
        assert echoed.choices[i].text == texts[i] == prompt + plain.choices[i].text
    assert echoed.usage is not None
    assert sum(logprobs) == echoed.usage.total_tokens


def test_a_prompt_whose_logprobs_are_told_is_read_whole_in_parts(served: ServedModel) -> None:
    """Though a slot holds it; others read and write meanwhile."""
    tokens = [7 + i % 50 for i in range(200)]
    asked: dict[str, Any] = {"model": "tiny", "prompt": tokens, "max_tokens": 0, "echo": True}
    engine = served.engine(2, context=256)
    with (
        running(served, engine, step_tokens=512) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="x") as client,
    ):
        answers = [client.completions.create(**asked, logprobs=0) for _ in range(2)]
        plain = client.completions.create(**asked | {"max_tokens": 1})
    for answer in answers:
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        assert answer.usage.prompt_tokens_details.cached_tokens == 0
        assert answer.usage.completion_tokens == 0
        assert answer.choices[0].logprobs is not None
        told = answer.choices[0].logprobs.token_logprobs or []
        assert told[1:] == pytest.approx(logprobs_of(served, tokens), abs=1e-4)
    assert plain.usage is not None
    assert plain.usage.prompt_tokens_details is not None
    assert plain.usage.prompt_tokens_details.cached_tokens == 199


@pytest.mark.parametrize("slots", [1, 2])
def test_every_turn_of_a_conversation_is_what_an_engine_that_holds_nothing_writes(
    served: ServedModel, slots: int
) -> None:
    """With others in between, and a turn that is asked for again with another ending."""
    messages: Any = list(MESSAGES)
    cached = []
    with (
        running(served, served.engine(slots)) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="x") as client,
    ):
        for turn in ("and?", "and?", "or?", "so?"):
            answer = client.chat.completions.create(
                model="tiny", messages=messages, max_tokens=7, temperature=0, logit_bias={"0": -100}
            )
            client.completions.create(model="tiny", prompt=f"{turn} 1234", max_tokens=3)
            text = "".join(f"<{said['role']}>{said['content']}\n" for said in messages) + "<assistant>"
            expected = served.greedy(served.tokenizer.encode(text), 7, first=1)
            stream = TextStream(served.tokenizer.token_bytes)
            written = "".join(map(stream.add, expected)) + stream.finish()

            assert answer.choices[0].message.content == written
            assert answer.usage is not None
            assert answer.usage.prompt_tokens_details is not None
            cached.append(answer.usage.prompt_tokens_details.cached_tokens or 0)
            if turn == "or?":
                messages = messages[:-1]
            else:
                messages += [{"role": "assistant", "content": written}]
            messages += [{"role": "user", "content": turn}]
    assert slots == 1 or min(cached[1:]) > 5


def test_answers_end_where_the_context_ends(served: ServedModel, client: OpenAI) -> None:
    prompt = served.tokenizer.encode("a " * 200)[: CONTEXT - 5]
    answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=50, temperature=0)

    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.total_tokens == CONTEXT


def test_models_are_listed_and_others_unknown(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    for ask in (
        lambda: client.models.retrieve("huge"),
        lambda: client.completions.create(model="huge", prompt="a"),
    ):
        with pytest.raises(openai.NotFoundError, match="huge; allowed: tiny") as caught:
            ask()
        assert caught.value.code == "model_not_found"


def test_a_prompt_that_fills_the_context_is_refused(client: OpenAI) -> None:
    long: Any = [{"role": "user", "content": "quick " * CONTEXT}]
    for ask, param in (
        (lambda: client.completions.create(model="tiny", prompt=[1] * CONTEXT), "prompt"),
        (lambda: client.chat.completions.create(model="tiny", messages=long), "messages"),
    ):
        with pytest.raises(
            openai.BadRequestError, match=r"longer than the context: found [0-9]+ tokens"
        ) as caught:
            ask()
        assert (caught.value.code, caught.value.param) == ("context_length_exceeded", param)


BAD_TEXT: tuple[tuple[dict[str, Any], str, str], ...] = (
    ({"prompt": ""}, "prompt", "no tokens"),
    ({"prompt": []}, "prompt", "empty"),
    ({"prompt": None}, "prompt", "a list of token ids"),
    ({"prompt": {"a": 1}}, "prompt", "found an object"),
    ({"prompt": ["a", 1]}, "prompt", "allowed: text"),
    ({"prompt": [1, 2, 384]}, "prompt", "found 384; allowed: 0 to 383"),
    ({"prompt": [-1]}, "prompt", "found -1"),
    ({"prompt": ["a", ""]}, "prompt", "no tokens"),
    ({"prompt": "a", "model": None}, "model", "/v1/models"),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens", "an integer of 1 or more"),
    ({"prompt": "a", "max_tokens": 1.5}, "max_tokens", "an integer of 1 or more"),
    ({"prompt": "a", "max_tokens": True}, "max_tokens", "an integer of 1 or more"),
    ({"prompt": "a", "temperature": -1}, "temperature", "0 to 100"),
    ({"prompt": "a", "temperature": "hot"}, "temperature", 'found "hot"'),
    ({"prompt": "a", "top_p": 1.01}, "top_p", "0 to 1"),
    ({"prompt": "a", "top_k": -2}, "top_k", "from -1 to"),
    ({"prompt": "a", "min_p": 2}, "min_p", "0 to 1"),
    ({"prompt": "a", "repetition_penalty": 0}, "repetition_penalty", "0.01 to 100"),
    ({"prompt": "a", "seed": 1 << 70}, "seed", "an integer from"),
    ({"prompt": "a", "stop": [""]}, "stop", "none of them empty"),
    ({"prompt": "a", "stop": ["x"] * 17}, "stop", "up to 16"),
    ({"prompt": "a", "n": 0}, "n", "an integer from 1 to 128"),
    ({"prompt": "a", "n": 2, "best_of": 3}, "best_of", "as many as n, 2"),
    ({"prompt": "a", "echo": "yes"}, "echo", "true or false"),
    ({"prompt": "a", "suffix": "b"}, "suffix", 'allowed: ""'),
    ({"prompt": "a", "logprobs": 21}, "logprobs", "from 0 to 20"),
    ({"prompt": "a", "stream": "yes"}, "stream", "true or false"),
    ({"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options", "with stream true"),
    ({"prompt": "a", "frequency_penalty": 2.5}, "frequency_penalty", "-2 to 2"),
    ({"prompt": "a", "presence_penalty": "no"}, "presence_penalty", "-2 to 2"),
    ({"prompt": "a", "logit_bias": [1]}, "logit_bias", "found a list; allowed: an object"),
    ({"prompt": "a", "logit_bias": {"fox": 1}}, "logit_bias", 'found "fox"'),
    ({"prompt": "a", "logit_bias": {"-1": 1}}, "logit_bias", 'found "-1"'),
    ({"prompt": "a", "logit_bias": {"7": 101}}, "logit_bias.7", "from -100 to 100"),
    ({"prompt": "a", "logit_bias": {"384": 1}}, "logit_bias", "found 384; allowed: 0 to 383"),
    ({"prompt": "a", "response_format": "json"}, "response_format", "json_schema"),
    ({"prompt": "a", "response_format": {"type": "xml"}}, "response_format", 'found {"type": "xml"}'),
    ({"prompt": "a", "min_tokens": 3}, "min_tokens", "allowed: best_of, echo"),
)


@pytest.mark.parametrize(("fields", "param", "words"), BAD_TEXT)
def test_what_a_completion_cannot_be_is_refused_with_what_it_can(
    client: OpenAI, fields: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/completions", body={"model": "tiny", **fields}, cast_to=dict[str, Any])
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert words in caught.value.message


BAD_CHAT: tuple[tuple[dict[str, Any], str, str], ...] = (
    ({"messages": []}, "messages", "one message or more"),
    ({"messages": "hello"}, "messages", "one message or more"),
    ({"messages": ["hello"]}, "messages[0]", "found a string"),
    ({"messages": [{"role": "king", "content": "a"}]}, "messages[0].role", "system, developer, user"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "found null"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content", '"type": "text"',
    ),
    ({"messages": [{"role": "tool", "content": "a"}]}, "messages", "no tools here"),
    (
        {"messages": [{"role": "user", "content": "a", "tool_calls": [{}]}]},
        "messages[0].tool_calls", "calls by assistant",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "["}}]}]},
        "messages[0].tool_calls[0].function.arguments", "a JSON object in a string",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "a"}]}]},
        "messages[0].tool_calls[0]", 'type "function"',
    ),
    ({"messages": MESSAGES, "tools": {"f": 1}}, "tools", "found an object"),
    ({"messages": MESSAGES, "tools": [{"type": "function"}]}, "tools[0]", "parameters"),
    (
        {"messages": MESSAGES, "tools": [{"type": "function", "function": {"name": "a b"}}]},
        "tools[0].function.name", 'found "a b"',
    ),
    (
        {"messages": MESSAGES, "tools": [{"type": "function", "function": {"name": "f"}}] * 2},
        "tools[1].function.name", "found f a second time",
    ),
    (
        {
            "messages": MESSAGES,
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}],
        },
        "tools[0].function.parameters", "schema of an object",
    ),
    ({"messages": MESSAGES, "tool_choice": "required"}, "tool_choice", "no tools"),
    (
        {"messages": MESSAGES, "tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "g"},
        "tool_choice", "none, auto, required",
    ),
    (
        {"messages": MESSAGES, "tools": [{"type": "function", "function": {"name": "f"}}]},
        "tools", "doesn't tell how it calls tools",
    ),
    ({"messages": MESSAGES, "modalities": ["audio"]}, "modalities", '["text"]'),
    ({"messages": MESSAGES, "chat_template_kwargs": 3}, "chat_template_kwargs", "found a number"),
    ({"messages": MESSAGES, "top_logprobs": 2}, "top_logprobs", "with logprobs true"),
    ({"messages": MESSAGES, "prompt": "a"}, "prompt", "not known"),
)  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "words"), BAD_CHAT)
def test_what_a_conversation_cannot_be_is_refused_with_what_it_can(
    client: OpenAI, fields: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/chat/completions", body={"model": "tiny", **fields}, cast_to=dict[str, Any])
    assert caught.value.param == param
    assert words in caught.value.message


def test_parts_of_text_are_one_text_and_a_developer_is_the_system(client: OpenAI) -> None:
    parts: Any = [
        {"role": "developer", "content": "Be"},
        {"role": "user", "content": [{"type": "text", "text": "Few "}, {"type": "text", "text": "bits"}]},
    ]
    plain: Any = [{"role": "system", "content": "Be"}, {"role": "user", "content": "Few bits"}]
    asked: dict[str, Any] = {"model": "tiny", "max_completion_tokens": 6, "temperature": 0, "user": "me"}
    answers = [
        client.chat.completions.create(messages=messages, **asked).choices[0].message.content
        for messages in (parts, plain)
    ]

    assert answers[0] == answers[1]


BAD_BODIES = (
    b"",
    b"{",
    b"\xff\xfe",
    b"[1]",
    b'"text"',
    b"[" * 60_000,
    b'{"prompt": "\\ud800", "model": "tiny"}',
)


@pytest.mark.parametrize("body", BAD_BODIES, ids=range(len(BAD_BODIES)))
def test_a_body_that_is_no_request_gets_400(server: Server, body: bytes) -> None:
    status, _, answer = call(server, "POST", "/v1/completions", body)

    assert status == 400
    assert answer["error"]["type"] == "invalid_request_error"
    assert "allowed:" in answer["error"]["message"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_gets_413(server: Server, chunked: bool) -> None:
    size = 1 << 18
    body = iter([b"x" * 4096] * (size // 4096)) if chunked else b"x" * size
    status, _, answer = call(server, "POST", "/v1/completions", body)

    assert status == 413
    assert answer["error"]["code"] == "body_too_large"
    assert "allowed: 65,536 bytes" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/v1/nothing", 404), ("GET", "/v1/completions", 405)]
)
def test_no_such_route_is_said_in_the_same_shape(server: Server, method: str, path: str, status: int) -> None:
    found, _, answer = call(server, method, path)

    assert found == status
    assert path in answer["error"]["message"]


def test_the_key_is_asked_for_everywhere_but_for_health(served: ServedModel) -> None:
    with running(served, served.engine(1), api_key="secret") as server:
        for key in ("wrong", "secret2", ""):
            client = OpenAI(base_url=f"{server.url}/v1", api_key=key or "x", max_retries=0)
            with client, pytest.raises(openai.AuthenticationError) as caught:
                client.models.list()
            assert caught.value.code == "invalid_api_key"
        with OpenAI(base_url=f"{server.url}/v1", api_key="secret") as client:
            assert [model.id for model in client.models.list()] == ["tiny"]
        status, headers, _ = call(server, "POST", "/v1/chat/completions", b"{}")
        health, _, body = call(server, "GET", "/health")

    assert (status, headers["www-authenticate"]) == (401, "Bearer")
    assert (health, body) == (200, {"status": "ok", "running": 0, "waiting": 0, "slots": 1})
