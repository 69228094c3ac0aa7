"""Answers in JSON, as the openai package asks for them: by a schema, and any object."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel, ConfigDict

from fewbits.engine.engine import open_engine
from fewbits.serving.open_server import open_server
from fewbits.serving.server import Server, ServerOptions
from published_model import published_model
from serving_model import ServedModel, call, running

MESSAGES: Any = [{"role": "user", "content": "The quick brown fox"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Paris", "São Paulo"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["city", "days", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server(served: ServedModel) -> Iterator[Server]:
    with running(served, served.engine(4, context=256)) as running_server:
        yield running_server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as made:
        yield made


def by_schema(schema: Any) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "trip", "schema": schema, "strict": True}}


def test_an_answer_follows_its_schema_however_it_is_drawn(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, response_format=by_schema(SCHEMA), temperature=3.0, n=4, seed=1,
        max_tokens=200,
    )  # fmt: skip

    told = set()
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        value = json.loads(choice.message.content or "")
        assert list(value) == ["city", "days", "tags"]
        assert value["city"] in ("Paris", "São Paulo")
        assert 1 <= value["days"] <= 99
        assert 1 <= len(value["tags"]) <= 3
        assert set(value["tags"]) <= {"a", "b"}
        told.add(choice.message.content)
    assert len(told) > 1


def test_a_stream_of_json_is_the_whole_answer(client: OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "tiny", "messages": MESSAGES, "response_format": by_schema(SCHEMA), "temperature": 2.0, "seed": 3,
    }  # fmt: skip
    whole = client.chat.completions.create(**asked).choices[0].message.content
    chunks = client.chat.completions.create(**asked, stream=True)

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole


def test_json_mode_gives_an_object_or_is_cut_off_in_one(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, response_format={"type": "json_object"}, temperature=1.5, n=4, seed=1,
        max_tokens=100, logit_bias={"92": 3},
    )  # fmt: skip

    for choice in answer.choices:
        text = choice.message.content or ""
        assert text.startswith("{")
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(text), dict)


def test_a_text_can_be_held_to_a_schema_too_and_its_logprobs_are_the_models(client: OpenAI) -> None:
    """Without a schema the first token would be another one, and be likelier."""
    asked: dict[str, Any] = {
        "model": "tiny",
        "prompt": "The",
        "temperature": 0,
        "logprobs": 1,
        "max_tokens": 40,
    }
    choice = client.completions.create(
        **asked, extra_body={"response_format": by_schema({"const": "fox"})}
    ).choices[0]

    assert choice.text == '"fox"'
    assert choice.finish_reason == "stop"
    assert choice.logprobs is not None
    assert choice.logprobs.tokens is not None
    assert choice.logprobs.top_logprobs is not None
    assert "".join(choice.logprobs.tokens) == '"fox"'
    assert choice.logprobs.tokens[0] not in choice.logprobs.top_logprobs[0]


def test_answers_with_and_without_a_schema_do_not_disturb_each_other(client: OpenAI) -> None:
    plain: dict[str, Any] = {"model": "tiny", "prompt": "The", "max_tokens": 30, "temperature": 0}
    alone = client.completions.create(**plain).choices[0].text
    held = client.completions.create(**plain, n=2, extra_body={"response_format": by_schema(SCHEMA)})
    after = client.completions.create(**plain).choices[0].text

    assert held.choices[0].text == held.choices[1].text != alone
    assert after == alone


BAD_SCHEMAS: tuple[tuple[Any, str], ...] = (
    ({"type": "objekt"}, "objekt"),
    ({"$ref": "#/nowhere"}, "nowhere"),
    ({"$ref": "http://example.com/schema"}, "example.com"),
    ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ({"type": "string", "pattern": "(?=a)"}, "regex"),
    ({"type": "string", "minLength": 5, "maxLength": 3}, "minLength"),
    ({"type": "number", "minimum": float("nan")}, "json"),
)


@pytest.mark.parametrize(("schema", "words"), BAD_SCHEMAS, ids=[words for _, words in BAD_SCHEMAS])
def test_a_schema_that_cannot_be_followed_is_refused_with_the_reason(
    server: Server, schema: Any, words: str
) -> None:
    body = {"model": "tiny", "messages": MESSAGES, "response_format": by_schema(schema)}
    status, _, answer = call(server, "POST", "/v1/chat/completions", json.dumps(body).encode())

    assert status == 400
    assert answer["error"]["param"] == "response_format"
    assert words in answer["error"]["message"]


def test_a_schema_of_any_depth_is_followed_or_refused_and_the_server_lives(server: Server) -> None:
    for depth in (50, 400, 900):
        schema: Any = {"type": "boolean"}
        for _ in range(depth):
            schema = {"type": "array", "items": schema, "minItems": 1, "maxItems": 1}
        text = json.dumps(
            {"model": "tiny", "prompt": "a", "max_tokens": 4, "response_format": by_schema(schema)}
        )
        status, _, answer = call(server, "POST", "/v1/completions", text.encode())

        assert status == (200 if depth == 50 else 400), answer


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    words = r"llguidance.*pip install 'fewbits\[serve\]'"
    with (
        running(served, served.engine(1)) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="x") as client,
        pytest.raises(openai.BadRequestError, match=words),
    ):
        client.chat.completions.create(
            model="tiny", messages=MESSAGES, response_format={"type": "json_object"}
        )


class Capital(BaseModel):
    """What is asked for below."""

    model_config = ConfigDict(extra="forbid")
    city: str
    continent: Literal["Africa", "Asia", "Europe"]


def test_a_real_model_fills_in_what_is_parsed_by_pydantic() -> None:
    path = published_model()
    assert open_engine(path, threads=1, context=64).vocabulary > 40_000
    server = open_server(path, ServerOptions(port=0), name="smol", slots=1, context=512, threads=2)
    from threading import Thread

    thread = Thread(target=server.run)
    thread.start()
    try:
        with OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
            answer = client.chat.completions.parse(
                model="smol", temperature=0, max_tokens=60, response_format=Capital,
                messages=[{"role": "user", "content": "Tell me the capital of France, in JSON."}],
            )  # fmt: skip
    finally:
        server.stop()
        thread.join(60)
    parsed = answer.choices[0].message.parsed

    assert parsed is not None
    assert parsed.city == "Paris"
    assert parsed.continent == "Europe"
