"""Calls of tools, as the openai package asks for them and gives their results back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from fewbits.language_model.text_tokenizer import render_conversation
from fewbits.serving.server import Server
from serving_model import TOOL_TEMPLATE, ServedModel, running, write_served_model

MESSAGES: Any = [{"role": "user", "content": "The quick brown fox"}]
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Oslo", "Rome"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK: dict[str, Any] = {
    "type": "function",
    "function": {"name": "clock", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}},
}  # fmt: skip
TOOLS: Any = [WEATHER, CLOCK]


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    """A model whose template knows tools."""
    return write_served_model(tmp_path_factory.mktemp("caller"), TOOL_TEMPLATE)


@pytest.fixture(scope="module")
def client(caller: ServedModel) -> Iterator[OpenAI]:
    with running(caller, caller.engine(4, context=1024)) as server, client_of(server) as made:
        yield made


def client_of(server: Server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)


def ask(client: OpenAI, **fields: Any) -> Any:
    asked = {"model": "tiny", "messages": MESSAGES, "tools": TOOLS, "max_tokens": 500, "temperature": 20.0}
    return client.chat.completions.create(**asked | fields)


def check(call: Any) -> str:
    """A call's name, once its arguments are what the tool takes."""
    arguments = json.loads(call.function.arguments)
    if call.function.name == "weather":
        assert arguments["city"] in ("Oslo", "Rome")
        assert 1 <= arguments["days"] <= 9
    else:
        assert arguments == {}
    assert call.type == "function"
    assert len(call.id) == 9
    return str(call.function.name)


def test_a_required_call_is_made_with_arguments_by_its_schema(client: OpenAI) -> None:
    answer = ask(client, tool_choice="required", n=4, seed=0)

    names: set[str] = set()
    for choice in answer.choices:
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        assert choice.message.tool_calls
        names |= {check(call) for call in choice.message.tool_calls}
    assert names == {"weather", "clock"}


def test_a_tool_that_is_named_is_the_one_that_is_called_once(client: OpenAI) -> None:
    for name in ("weather", "clock"):
        answer = ask(client, tool_choice={"type": "function", "function": {"name": name}}, n=2, seed=1)

        for choice in answer.choices:
            assert [check(call) for call in choice.message.tool_calls or ()] == [name]


def test_without_parallel_calls_there_is_one(client: OpenAI) -> None:
    answer = ask(client, tool_choice="required", parallel_tool_calls=False, n=4, seed=0)

    assert [len(choice.message.tool_calls or ()) for choice in answer.choices] == [1] * 4


def test_a_stream_of_calls_is_the_whole_answer_in_parts(client: OpenAI) -> None:
    whole = ask(client, tool_choice="required", seed=2)
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    reasons = []
    for chunk in ask(client, tool_choice="required", seed=2, stream=True):
        [choice] = chunk.choices
        assert not choice.delta.content
        reasons += [choice.finish_reason] if choice.finish_reason else []
        for part in choice.delta.tool_calls or ():
            names[part.index] = names.get(part.index, "") + (part.function.name or "")
            arguments[part.index] = arguments.get(part.index, "") + part.function.arguments
    expected = [(call.function.name, call.function.arguments) for call in whole.choices[0].message.tool_calls]

    assert reasons == ["tool_calls"]
    assert list(names) == list(range(len(expected)))
    assert [(names[i], arguments[i]) for i in names] == expected


def test_by_default_the_model_writes_text_or_calls(caller: ServedModel, client: OpenAI) -> None:
    """A bias makes it begin a call, which is all that it may then write."""
    text = ask(client, temperature=0, max_tokens=5).choices[0]
    [opening] = [token for token in range(384) if caller.tokenizer.token_bytes(token) == b"<"]
    called = ask(client, seed=3, logit_bias={str(opening): 3}, n=4)

    assert text.finish_reason == "length"
    assert text.message.tool_calls is None
    assert text.message.content
    for choice in called.choices:
        for call in choice.message.tool_calls or ():
            check(call)


def test_none_is_the_same_as_no_tools(client: OpenAI) -> None:
    with_none = ask(client, tool_choice="none", temperature=0, max_tokens=8)
    without = ask(client, tools=openai.omit, temperature=0, max_tokens=8)

    assert with_none.choices[0].message.content == without.choices[0].message.content
    assert with_none.usage.prompt_tokens == without.usage.prompt_tokens


def test_the_model_is_told_of_tools_calls_and_results_by_its_template(
    caller: ServedModel, client: OpenAI
) -> None:
    """A conversation goes on after a call: its prompt is what the template makes of it, token for token."""
    first = ask(client, tool_choice="required", parallel_tool_calls=False, seed=4).choices[0].message
    call = first.tool_calls[0]
    conversation: Any = [
        *MESSAGES,
        first.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    answer = ask(client, messages=conversation, temperature=0, max_tokens=6, tool_choice="auto")
    function = {"name": call.function.name, "arguments": json.loads(call.function.arguments)}
    rendered: Any = [
        *MESSAGES,
        {"role": "assistant", "content": "", "tool_calls": [{"id": call.id, "type": "function", "function": function}]},
        {"role": "tool", "content": "sunny", "tool_call_id": call.id},
    ]  # fmt: skip
    told = [
        WEATHER,
        {"type": "function", "function": {"name": "clock", "description": "", **CLOCK["function"]}},
    ]
    prompt = render_conversation(TOOL_TEMPLATE, rendered, True, {"tools": told})

    assert "<tool_call>" in prompt
    assert "sunny" in prompt
    assert answer.usage.prompt_tokens == len(caller.tokenizer.encode(prompt))


def test_a_call_that_is_cut_off_ends_with_length(client: OpenAI) -> None:
    choice = ask(client, tool_choice="required", max_tokens=12, seed=0).choices[0]

    assert choice.finish_reason == "length"
    assert choice.message.tool_calls is None
    assert choice.message.content.startswith("<tool_call>")


def test_a_schema_for_what_is_no_call_holds_beside_tools(client: OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["yes", "no"]}}}
    for choice in ask(client, response_format=form, n=4, seed=5).choices:
        if choice.message.tool_calls:
            assert {check(call) for call in choice.message.tool_calls} <= {"weather", "clock"}
        else:
            assert choice.message.content in ('"yes"', '"no"')


def test_a_wrong_schema_is_refused_with_its_tools_name(client: OpenAI) -> None:
    wrong = {
        "type": "function",
        "function": {"name": "f", "parameters": {"properties": {"a": {"type": "x"}}}},
    }
    with pytest.raises(openai.BadRequestError, match="Invalid type: x") as caught:
        ask(client, tools=[WEATHER, wrong])
    assert caught.value.param == "tools.f.parameters"


def test_a_template_is_told_further_variables(tmp_path: Any) -> None:
    template = "{{ 'thinking' if enable_thinking else 'not' }} {{ messages[0].content }}"
    model = write_served_model(tmp_path, template)
    with running(model, model.engine(1)) as server, client_of(server) as client:
        counts = []
        for value in (True, False):
            told = {"chat_template_kwargs": {"enable_thinking": value, "messages": []}}
            answer = client.chat.completions.create(
                model="tiny", messages=MESSAGES, max_tokens=1, extra_body=told
            )
            assert answer.usage is not None
            counts.append(answer.usage.prompt_tokens)

    encode = model.tokenizer.encode
    assert counts == [len(encode(f"{word} The quick brown fox")) for word in ("thinking", "not")]
