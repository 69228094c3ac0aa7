"""Grammars of answers, in llguidance's dialect of Lark: JSON, and calls of tools as a model writes them.

Source: llguidance's docs/syntax.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from fewbits.serving.call_markup import CallMarkup, Parts
from fewbits.serving.tools import Tools

# A line break with what lines are indented by, or a space: any white space a model might write for ever.
_SPACE = r"\n {0,40}| "
# Of alternatives of which exactly one may hold ("oneOf") any may be written, as of those of "anyOf".
_JSON_OPTIONS = {"whitespace_pattern": _SPACE, "coerce_one_of": True}
_MOST_CALLS = 16
_TEXT = r"/(.|\n)*/"


def json_rule(schema: Mapping[str, Any]) -> str:
    """A value that follows a JSON schema."""
    return f"%json {json.dumps({**schema, 'x-guidance': _JSON_OPTIONS})}"


def call_grammar(
    markup: CallMarkup, tools: Tools, schema: Mapping[str, Any] | None, control_tokens: Mapping[str, int]
) -> str:
    """An answer of calls.

    Args:
        markup: how the model writes them.
        tools: that may be called; unless they are required, other text may be written instead, or before.
        schema: JSON schema of that other text; None: any.
        control_tokens: ids by text, of tokens that aren't made of letters.
    """
    lark = _Lark(control_tokens)
    calls = f"{lark.parts(markup.opening)} calls"
    if tools.required:
        rules = [f"start: {calls}"]
    elif schema is not None:
        rules = [f"start: {calls} | other", f"other: {json_rule(schema)}"]
    elif not markup.trigger:  # calls are the whole answer: other text is what doesn't begin like them
        calls_or_like_them = re.escape(markup.opening[0]).replace("/", r"\/") + r"(.|\n)*"
        rules = [f"start: {calls} | OTHER", f"OTHER: {_TEXT} & ~/{calls_or_like_them}/"]
    else:
        rest = f"{lark.parts(markup.after_trigger)} calls"
        trigger = lark.literal(markup.trigger)
        special = markup.trigger in control_tokens
        rules = [
            f"start: TEXT {trigger} {rest} | TEXT" if special else f"start: head {rest} | TEXT",
            *([] if special else [f"head[lazy]: TEXT {trigger}"]),
            f"TEXT: {_TEXT}",
        ]
    return "\n".join([*rules, *_calls(lark, markup, tools), ""])


def _calls(lark: _Lark, markup: CallMarkup, tools: Tools) -> list[str]:
    """The rules of one call or more, without what opens them."""
    more = ""
    if markup.separator is not None and tools.parallel:
        more = f"({lark.parts(markup.separator)} call){{0,{_MOST_CALLS - 1}}}"
    between = lark.parts(markup.between)
    each = [
        f"tool_{i}: {lark.literal(tool.name)} {between} {json_rule(tool.parameters)}"
        for i, tool in enumerate(tools.callable)
    ]
    return [
        f"calls: call {more} {lark.parts(markup.closing)}",
        f"call: {' | '.join(f'tool_{i}' for i in range(len(each)))}",
        *each,
        "CALL_ID: /[a-zA-Z0-9]{9}/",
    ]


class _Lark:
    """Literal text in the grammar."""

    def __init__(self, control_tokens: Mapping[str, int]) -> None:
        self._tokens = control_tokens
        names = sorted(filter(None, control_tokens), key=len, reverse=True)
        self._names = re.compile("|".join(map(re.escape, names)) or "(?!)")

    def literal(self, text: str) -> str:
        """Text in which names of control tokens are those tokens."""
        pieces: list[str] = []
        at = 0
        for name in self._names.finditer(text):
            pieces += [_quoted(text[at : name.start()]), f"<[{self._tokens[name[0]]}]>"]
            at = name.end()
        return " ".join(filter(None, [*pieces, _quoted(text[at:])]))

    def parts(self, parts: Parts) -> str:
        """Text with ids of calls between its parts."""
        return " CALL_ID ".join(map(self.literal, parts))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""
