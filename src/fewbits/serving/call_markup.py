"""How a model writes calls of tools, as its chat template tells when it is given some.

There is no table of models: a conversation with calls in it is filled in, and what stands around their names and
arguments is how this model writes them. Templates that don't tell it so have no calls.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from fewbits.errors import EvaluationError

# Literal text; between its parts stand ids of calls.
Parts: TypeAlias = tuple[str, ...]
Render: TypeAlias = Callable[[Sequence[Mapping[str, Any]], Mapping[str, Any], bool], str]

_NAMES = ("qzprobea", "qzprobeb", "qzprobec")
_IDS = ("qzcalla01", "qzcallb02", "qzcallc03")  # nine letters and digits, as Mistral's templates want them
_KEY, _VALUES = "qzkey", ("qzvaluea", "qzvalueb", "qzvaluec")
_TEXT = "qztext"
_TAG = re.compile(r"<[^<>\s]+>")
_ASKED = {"role": "user", "content": "qzasked"}


@dataclass(frozen=True)
class CallMarkup:
    """What stands around the parts of calls: ``opening NAME between ARGUMENTS (separator NAME …)* closing``.

    Attributes:
        trigger: that with which `opening` begins, white space aside, and by which calls are told from the text before
            them; empty where calls are the whole of an answer.
        separator: None where only one call at a time can be written.
        closing: up to the token that ends the answer.
    """

    trigger: str
    opening: Parts
    between: Parts
    separator: Parts | None
    closing: Parts

    @property
    def after_trigger(self) -> Parts:
        """What opens calls, from behind the trigger on."""
        first, *others = self.opening
        return (first.lstrip()[len(self.trigger) :], *others)

    @property
    def literals(self) -> tuple[str, ...]:
        """All text that isn't a name, arguments or an id."""
        return (*self.opening, *self.between, *(self.separator or ()), *self.closing)


def call_markup(render: Render, ends: Sequence[str], added: Collection[str]) -> CallMarkup | None:
    """Ask a template how it writes calls.

    Args:
        render: fills in messages, further variables, and whether the next answer begins at the end.
        ends: texts of the tokens that end an answer.
        added: texts of all tokens that are markup rather than letters.

    Returns:
        None if the template knows no tools, or writes calls otherwise than by name and JSON.
    """
    tools = [_tool(name) for name in _NAMES]

    def told(count: int) -> str:
        return render([_ASKED, *_called(count)], {"tools": tools}, False)

    try:
        prompt = render([_ASKED], {"tools": tools}, True)
        one = told(1)
    except EvaluationError:
        return None
    start = _answer_start(render, tools, prompt, one) if _NAMES[0] in prompt else None
    found = None if start is None else _one_call(one[start:], ends, added)
    if found is None:
        return None
    return replace(found, separator=_separator(found, told))


def _tool(name: str) -> Mapping[str, Any]:
    parameters = {"type": "object", "properties": {_KEY: {"type": "string"}}}
    return {
        "type": "function",
        "function": {"name": name, "description": "qzdescription", "parameters": parameters},
    }


def _called(count: int) -> list[Mapping[str, Any]]:
    """An answer of calls, and their results: templates write the last message of all in other ways."""
    calls: list[Mapping[str, Any]] = []
    results: list[Mapping[str, Any]] = []
    for name, call_id, value in zip(_NAMES[:count], _IDS, _VALUES, strict=False):
        function = {"name": name, "arguments": {_KEY: value}}
        calls.append({"id": call_id, "type": "function", "function": function})
        results.append({"role": "tool", "content": "qzresult", "name": name, "tool_call_id": call_id})
    return [{"role": "assistant", "content": "", "tool_calls": calls}, *results]


def _answer_start(render: Render, tools: Sequence[Mapping[str, Any]], prompt: str, called: str) -> int | None:
    """Where the answer with a call begins."""
    if called.startswith(prompt):
        return len(prompt)
    # The prompt ends in the beginning of an answer that isn't kept, such as of thoughts.
    try:
        text = render([_ASKED, {"role": "assistant", "content": _TEXT}, _ASKED], {"tools": tools}, False)
    except EvaluationError:
        return None
    header = text[: max(0, text.find(_TEXT))]
    return len(header) if header and called.startswith(header) else None


def _one_call(answer: str, ends: Sequence[str], added: Collection[str]) -> CallMarkup | None:
    """The markup of an answer that begins with one call."""
    name = answer.find(_NAMES[0])
    arguments = _find_arguments(answer, 0, name)
    if name < 1 or arguments is None:
        return None
    first, last = arguments
    at = [place for end in ends if (place := answer.find(end, last)) >= 0]
    if not at:
        return None
    return CallMarkup(
        trigger=_trigger(answer[:name].split(_IDS[0])[0].lstrip(), added),
        opening=tuple(answer[:name].split(_IDS[0])),
        between=tuple(answer[name + len(_NAMES[0]) : first].split(_IDS[0])),
        separator=None,
        closing=tuple(answer[last : min(at)].split(_IDS[0])),
    )


def _trigger(opening: str, added: Collection[str]) -> str:
    """A token of markup at the beginning, or what looks like one."""
    tokens = [token for token in added if token and opening.startswith(token)]
    tag = _TAG.match(opening)
    return max(tokens, key=len) if tokens else tag[0] if tag else ""


def _find_arguments(answer: str, index: int, name: int) -> tuple[int, int] | None:
    """Where a call's arguments lie as a JSON object behind its name."""
    key = answer.find(_KEY, max(0, name))
    first = answer.rfind("{", 0, key) if key >= 0 else -1
    if first < name:
        return None
    try:
        value, last = json.JSONDecoder().raw_decode(answer, first)
    except ValueError:
        return None
    return (first, last) if value == {_KEY: _VALUES[index]} else None


def _separator(one: CallMarkup, told: Callable[[int], str]) -> Parts | None:
    """What stands between two calls, if there may be more than one, all written alike."""
    count = len(_NAMES)
    try:
        text = told(count)
    except EvaluationError:
        return None
    found: set[Parts] = set()
    before = None  # where the arguments of the call before end
    for i in range(count):
        # Names are in the tools' descriptions, too: the last places before the arguments count.
        name = text.rfind(_NAMES[i], 0, text.rfind(_VALUES[i]))
        arguments = _find_arguments(text, i, name)
        if arguments is None:
            return None
        between = text[name + len(_NAMES[i]) : arguments[0]]
        if tuple(between.split(_IDS[i])) != one.between:
            return None
        if before is not None:
            separator = text[before:name].replace(_IDS[i - 1], _IDS[i])
            found.add(tuple(separator.split(_IDS[i])))
        before = arguments[1]
    return found.pop() if len(found) == 1 else None
