"""An answer's text as it comes, taken apart into what is said and calls of tools."""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fewbits.serving.call_markup import CallMarkup, Parts

_ID_LETTERS = string.ascii_letters + string.digits


@dataclass(frozen=True)
class Call:
    """A call of a tool.

    Attributes:
        arguments: JSON of an object, as the model wrote it.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Said:
    """What has become certain: text, and calls after it."""

    text: str
    calls: tuple[Call, ...] = ()


class AnswerReader(Protocol):
    """Takes an answer apart."""

    def add(self, text: str) -> Said:
        """What this further text makes certain."""

    def finish(self) -> Said:
        """What is left when no more text comes."""


class TextReader:
    """For answers without calls."""

    def add(self, text: str) -> Said:
        """See `AnswerReader`."""
        return Said(text)

    def finish(self) -> Said:
        """See `AnswerReader`."""
        return Said("")


class CallReader:
    """For answers in which a model may call tools in its markup.

    Calls are told whole. What begins like one and isn't, or is cut off, is told as text in the end.
    """

    def __init__(self, markup: CallMarkup, names: Sequence[str]) -> None:
        """A reader at the beginning of an answer.

        Args:
            markup: how the model writes calls.
            names: tools that it may call.
        """
        self._markup = markup
        self._opening = markup.trigger or markup.opening[0]
        first = _pattern(markup.after_trigger if markup.trigger else markup.opening)
        separator = "(?!)" if markup.separator is None else _pattern(markup.separator)
        name = "(?P<name>" + "|".join(map(re.escape, names)) + ")" + _pattern(markup.between)
        self._first = re.compile(first + name)
        self._next = re.compile(separator + name)
        self._held = ""
        self._in_calls = self._text_only = False
        self._count = 0

    def add(self, text: str) -> Said:
        """See `AnswerReader`."""
        self._held += text
        said = "" if self._in_calls else self._text()
        return Said(said, self._calls() if self._in_calls else ())

    def finish(self) -> Said:
        """See `AnswerReader`."""
        held, self._held = self._held, ""
        if self._in_calls and self._count:
            closing = re.fullmatch(_pattern(self._markup.closing) + r"\s*", held)
            return Said("" if closing or not held.strip() else held)
        return Said((self._markup.trigger if self._in_calls else "") + held)

    def _text(self) -> str:
        """What is certain to be no part of a call."""
        held = self._held
        if self._text_only:
            said, self._held = held, ""
            return said
        if not self._markup.trigger:
            return self._text_or_calls()
        at = held.find(self._opening)
        if at >= 0:
            self._in_calls = True
            self._held = held[at + len(self._opening) :]
            return held[:at].rstrip()
        # White space before calls belongs to their markup.
        certain = len(held) - _overlap(held, self._opening)
        certain = len(held[:certain].rstrip())
        self._held = held[certain:]
        return held[:certain]

    def _text_or_calls(self) -> str:
        """All text, once it doesn't begin like a call."""
        if self._held.startswith(self._opening):
            self._in_calls = True
        elif not self._opening.startswith(self._held):
            self._text_only = True
            return self._text()
        return ""

    def _calls(self) -> tuple[Call, ...]:
        """The calls that are whole by now."""
        calls = []
        while call := self._call():
            calls.append(call)
        return tuple(calls)

    def _call(self) -> Call | None:
        match = (self._next if self._count else self._first).match(self._held)
        if match is None or not self._held.startswith("{", match.end()):
            return None
        try:
            _, end = json.JSONDecoder().raw_decode(self._held, match.end())
        except (ValueError, RecursionError):
            return None
        arguments = self._held[match.end() : end]
        self._held = self._held[end:]
        self._count += 1
        return Call(_new_id(), match["name"], arguments)


def _pattern(parts: Parts) -> str:
    """A regular expression of literal text with ids of calls between its parts."""
    return "[a-zA-Z0-9]{9}".join(map(re.escape, parts))


def _overlap(text: str, start: str) -> int:
    """Length of the longest end of `text` that `start` begins with; never all of `start`."""
    for length in range(min(len(text), len(start) - 1), 0, -1):
        if text.endswith(start[:length]):
            return length
    return 0


def _new_id() -> str:
    """Nine letters and digits, the only form that some templates take back."""
    return "".join(secrets.choice(_ID_LETTERS) for _ in range(9))
