"""Tokens to text as they come: whole characters only, and never a part of a stop string.

Knows no tokenizer and does no input or output.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence


class TextStream:
    """Collects the bytes of tokens and gives out what is certain to belong to the answer.

    What may still become a stop string is held back until it is one, or can't be one any more.

    Attributes:
        stopped_by: the stop string that was found; the answer ends before it.
    """

    def __init__(self, token_bytes: Callable[[int], bytes], stop: Sequence[str] = ()) -> None:
        """A stream at the beginning of an answer.

        Args:
            token_bytes: what a token adds to a text, in UTF-8 that may begin or end within a character
                (`GgufTokenizer.token_bytes`).
            stop: strings, none of them empty.
        """
        self.stopped_by: str | None = None
        self._token_bytes = token_bytes
        self._stop = tuple(stop)
        # Bytes that can't be UTF-8 become U+FFFD, as in every tokenizer's decoder.
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def add(self, token: int) -> str:
        """The text that this token makes certain: maybe none, maybe more than its own."""
        if self.stopped_by is not None:
            return ""
        text = self._held + self._characters.decode(self._token_bytes(token))
        found = [(at, stop) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            at, self.stopped_by = min(found)
            self._held = ""
            return text[:at]
        certain = len(text) - max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[certain:]
        return text[:certain]

    def finish(self) -> str:
        """The text that was held back, once no token follows. A character that isn't whole is left out."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with; never all of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
