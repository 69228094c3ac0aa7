"""How templates of several styles write calls, and answers in these styles taken apart again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.errors import RequestError
from fewbits.language_model.text_tokenizer import render_conversation
from fewbits.serving.call_markup import CallMarkup, call_markup
from fewbits.serving.call_reader import Call, CallReader
from fewbits.serving.grammar import Grammar, Grammars
from fewbits.serving.tools import Tool, Tools
from serving_model import TEMPLATE, TOOL_TEMPLATE, ServedModel, write_served_model

END = "<|endoftext|>"
HEAD = "{% for tool in tools %}{{ tool.function.name }}{% endfor %}{% for m in messages %}<{{ m.role }}>{{ m.content }}"
TAIL = (
    "{{ '<|endoftext|>' if m.role == 'assistant' else '' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
# One object and nothing else, one call at a time.
BARE = (
    HEAD
    + "{% if m.tool_calls %}{% if m.tool_calls | length > 1 %}{{ raise_exception('one only') }}{% endif %}"
    '{"name": "{{ m.tool_calls[0].function.name }}", '
    '"parameters": {{ m.tool_calls[0].function.arguments | tojson }}}{% endif %}' + TAIL
)
# A list behind a token, with ids that must have nine letters.
LIST = (
    HEAD + "{% if m.tool_calls %}[TOOL_CALLS] [{% for c in m.tool_calls %}"
    "{% if c.id | length != 9 %}{{ raise_exception('ids have nine letters') }}{% endif %}"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, "id": "{{ c.id }}"}'
    "{{ ', ' if not loop.last }}{% endfor %}]{% endif %}" + TAIL
)
# Names outside of any JSON, each call with a mark of its own.
MARKS = (
    HEAD + "{% for c in m.tool_calls %}[TOOL_CALLS]{{ c.function.name }}[ARGS]"
    "{{ c.function.arguments | tojson }}{% endfor %}" + TAIL
)
# The prompt opens thoughts that past answers don't have.
THINKING = TOOL_TEMPLATE.replace("<assistant>{% endif %}", "<assistant><think>{% endif %}")
# Arguments as tags.
TAGS = (
    HEAD
    + "{% for c in m.tool_calls %}<call={{ c.function.name }}>{% for k, v in c.function.arguments.items() %}"
    "<{{ k }}>{{ v }}</{{ k }}>{% endfor %}</call>{% endfor %}" + TAIL
)
# A number in every call.
NUMBERED = TOOL_TEMPLATE.replace('{"name"', '{"id": {{ loop.index0 }}, "name"')
CALLED = '<tool_call>\n{"name": "'
ARGUMENTS = '", "arguments": '


def markup_of(template: str, added: Sequence[str] = ("[TOOL_CALLS]", "[ARGS]")) -> CallMarkup | None:
    def render(messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any], answer: bool) -> str:
        return render_conversation(template, messages, answer, variables)

    return call_markup(render, [END], added)


STYLES = (
    (
        TOOL_TEMPLATE,
        CallMarkup("<tool_call>", (CALLED,), (ARGUMENTS,), ("}\n</tool_call>\n" + CALLED,), ("}\n</tool_call>",)),
    ),
    (
        THINKING,
        CallMarkup("<tool_call>", (CALLED,), (ARGUMENTS,), ("}\n</tool_call>\n" + CALLED,), ("}\n</tool_call>",)),
    ),
    (BARE, CallMarkup("", ('{"name": "',), ('", "parameters": ',), None, ("}",))),
    (
        LIST,
        CallMarkup(
            "[TOOL_CALLS]", ('[TOOL_CALLS] [{"name": "',), (ARGUMENTS,),
            (', "id": "', '"}, {"name": "'), (', "id": "', '"}]'),
        ),
    ),
    (MARKS, CallMarkup("[TOOL_CALLS]", ("[TOOL_CALLS]",), ("[ARGS]",), ("[TOOL_CALLS]",), ("",))),
    (
        NUMBERED,
        CallMarkup("<tool_call>", ('<tool_call>\n{"id": 0, "name": "',), (ARGUMENTS,), None, ("}\n</tool_call>",)),
    ),
)  # fmt: skip
IDS = ("objects in tags", "after thoughts", "bare object", "list with ids", "marks", "numbered")


@pytest.mark.parametrize(("template", "expected"), STYLES, ids=IDS)
def test_a_template_tells_how_it_writes_calls(template: str, expected: CallMarkup) -> None:
    assert markup_of(template) == expected


@pytest.mark.parametrize(
    "template",
    [
        TEMPLATE,
        TAGS,
        TOOL_TEMPLATE.replace("tool_calls", "function_calls"),
        TOOL_TEMPLATE.replace("<|endoftext|>", "[end]"),
        TOOL_TEMPLATE.replace("{{ tool | tojson }}", "a tool"),
    ],
    ids=["no tools", "arguments as tags", "calls not written", "no end", "tools not told"],
)
def test_a_template_that_does_not_tell_it_has_no_calls(template: str) -> None:
    assert markup_of(template) is None


def test_tojson_keeps_the_order_and_escapes_nothing() -> None:
    text = render_conversation("{{ messages[0] | tojson }}", [{"b": "<é'>", "a": [1, None]}], False, {})

    assert text == '{"b": "<é\'>", "a": [1, null]}'


def test_variables_are_told_to_a_template_but_take_nobodys_place() -> None:
    template = "{{ enable_thinking }} {{ bos_token }} {{ messages[0].content }}"
    told = {"enable_thinking": False, "bos_token": "x", "messages": "y"}

    assert render_conversation(template, [{"content": "a"}], False, told, bos_token="<s>") == "False <s> a"


def said(reader: CallReader, text: str, cuts: Sequence[int]) -> tuple[str, list[tuple[str, str]]]:
    """Text and calls of an answer that comes in pieces."""
    told, calls = [], list[Call]()
    places = [0, *sorted(cuts), len(text)]
    for first, last in pairwise(places):
        part = reader.add(text[first:last])
        told.append(part.text)
        calls += part.calls
    told.append(reader.finish().text)
    assert len({call.id for call in calls}) == len(calls)
    assert all(len(call.id) == 9 and call.id.isalnum() for call in calls)
    return "".join(told), [(call.name, call.arguments) for call in calls]


def written(markup: CallMarkup, calls: Sequence[tuple[str, str]]) -> str:
    """Calls in a markup."""
    text = "abcDEF123".join(markup.opening)
    for i, (name, arguments) in enumerate(calls):
        if i:
            assert markup.separator is not None
            text += "abcDEF123".join(markup.separator)
        text += name + "abcDEF123".join(markup.between) + arguments
    return text + "abcDEF123".join(markup.closing)


CALLS = (("f", "{}"), ("find_it", '{"a": {"b": "}{ \\" </tool_call>"}, "c": [1, 2]}'))


@pytest.mark.parametrize("markup", [markup for _, markup in STYLES], ids=IDS)
@given(data=st.data())
def test_calls_are_found_wherever_the_text_is_cut(markup: CallMarkup, data: st.DataObject) -> None:
    calls = CALLS if markup.separator else CALLS[1:]
    before = (
        data.draw(st.sampled_from(["", "I look it up.", "a < b <tool_ca> [TOOL"])) if markup.trigger else ""
    )
    text = before + data.draw(st.sampled_from(["", "\n\n"]) if markup.trigger else st.just(""))
    text += written(markup, calls)
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=12))

    assert said(CallReader(markup, ["f", "find_it"]), text, cuts) == (before, list(calls))


@pytest.mark.parametrize("markup", [markup for _, markup in STYLES], ids=IDS)
@given(data=st.data())
def test_text_without_calls_comes_out_as_it_is(markup: CallMarkup, data: st.DataObject) -> None:
    text = data.draw(
        st.sampled_from(
            [
                "",
                "Hello.\n",
                '{"na',
                '{"name": "g", "parameters": {}}',
                "<tool_call",
                " [TOOL_CALL",
                "a\n\n <tool_",
            ]
        )
    )
    if markup.trigger:
        text = data.draw(st.sampled_from([text, "x" + text]))
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=8))

    assert said(CallReader(markup, ["f"]), text, cuts) == (text, [])


def test_a_call_that_is_cut_off_is_told_as_text() -> None:
    markup = STYLES[0][1]
    whole = written(markup, CALLS)
    assert said(CallReader(markup, ["f", "find_it"]), whole[:30], []) == (whole[:30], [])
    cut = whole[: whole.index("find_it") + 20]
    text, calls = said(CallReader(markup, ["f", "find_it"]), cut, [])

    assert calls == [CALLS[0]]
    assert text
    assert cut.endswith(text)


PLACE = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Oslo", "Rome"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = Tool("weather", {}, PLACE)
CLOCK = Tool("clock", {}, {"type": "object", "properties": {}, "additionalProperties": False})


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    """A model with control tokens for calls."""
    folder = tmp_path_factory.mktemp("marked")
    return write_served_model(folder, MARKS, ("[TOOL_CALLS]", "[ARGS]"))


def drawn(grammar: Grammar, served: ServedModel, seed: int, avoid: str = "") -> str:
    """A random answer by a grammar, every token alike likely but those of `avoid`; control tokens by name."""
    names = {token: name for name, token in served.tokenizer.control_tokens.items()}
    random = np.random.default_rng(seed)
    constraint = grammar.constraint()
    text = ""
    for _ in range(2000):
        allowed = np.flatnonzero(constraint.allowed())
        texts = {
            int(t): names.get(int(t)) or served.tokenizer.token_bytes(int(t)).decode("utf-8", "replace")
            for t in allowed
        }
        ends = [token for token in texts if token in served.tokenizer.eos_ids]
        if ends and (len(ends) == len(texts) or random.random() < 0.5):
            return text
        wanted = [t for t in texts if t not in ends and not set(texts[t]) & set(avoid)] or list(texts)
        token = int(random.choice(wanted))
        text += texts[token]
        constraint.wrote(token)
    raise AssertionError(f"no end: {text}")


@pytest.mark.parametrize("markup", [markup for _, markup in STYLES], ids=IDS)
def test_required_calls_are_written_as_the_template_writes_them(
    marked: ServedModel, markup: CallMarkup
) -> None:
    tools = Tools((WEATHER, CLOCK), (WEATHER, CLOCK), required=True)
    grammar = Grammars(marked.tokenizer, 384).calls(markup, tools, None)
    counts = set()
    for seed in range(8):
        text = drawn(grammar, marked, seed)
        rest, calls = said(CallReader(markup, ["weather", "clock"]), text, [])
        counts.add(len(calls))

        assert rest == ""
        assert calls
        for name, arguments in calls:
            value = json.loads(arguments)
            assert value == {} if name == "clock" else value["city"] in ("Oslo", "Rome")
    assert (max(counts) > 1) == (markup.separator is not None)


@pytest.mark.parametrize("markup", [markup for _, markup in STYLES], ids=IDS)
def test_calls_that_are_not_required_may_follow_text_or_be_left_out(
    marked: ServedModel, markup: CallMarkup
) -> None:
    grammar = Grammars(marked.tokenizer, 384).calls(markup, Tools((WEATHER,), (WEATHER,)), None)
    constraint = grammar.constraint()
    control = sorted(marked.tokenizer.control_tokens.values())
    trigger = marked.tokenizer.control_tokens.get(markup.trigger)
    allowed = constraint.allowed()

    assert allowed.sum() > 250  # any text; half characters must be whole ones some day
    assert [token for token in control if allowed[token]] == sorted({0, trigger} - {None})
    for token in marked.tokenizer.encode(markup.trigger or markup.opening[0]):
        assert constraint.allowed()[token]
        constraint.wrote(token)
    assert constraint.allowed().sum() < 20  # and now nothing but a call


def test_one_call_where_more_are_not_wanted(marked: ServedModel) -> None:
    tools = Tools((CLOCK,), (CLOCK,), required=True, parallel=False)
    grammar = Grammars(marked.tokenizer, 384).calls(STYLES[0][1], tools, None)

    assert {drawn(grammar, marked, seed).count("<tool_call>") for seed in range(10)} == {1}


def test_what_is_no_call_follows_a_schema_if_there_is_one(marked: ServedModel) -> None:
    grammar = Grammars(marked.tokenizer, 384).calls(
        STYLES[0][1], Tools((CLOCK,), (CLOCK,)), {"enum": ["yes", "no"]}
    )
    texts = {drawn(grammar, marked, seed) for seed in range(40)}

    assert {text for text in texts if text.startswith('"')} == {'"yes"', '"no"'}
    assert {text[:11] for text in texts if not text.startswith('"')} == {"<tool_call>"}


def test_the_tool_with_the_wrong_schema_is_named(marked: ServedModel) -> None:
    wrong = Tool("wrong", {}, {"type": "object", "properties": {"a": {"type": "objekt"}}})
    with pytest.raises(RequestError, match="objekt") as caught:
        Grammars(marked.tokenizer, 384).calls(STYLES[0][1], Tools((CLOCK, wrong), (CLOCK, wrong)), None)
    assert caught.value.param == "tools.wrong.parameters"
