"""Guessing the next tokens from what the text itself said before: prompt-lookup speculation.

After Saxena, "Prompt Lookup Decoding" (2023): where the last few tokens stood earlier in the text, what followed them
there is likely to follow again. A guess costs one step of the model for all its tokens together, and changes no result,
since tokens count only as far as they are the ones that would have been chosen anyway.
"""

from __future__ import annotations

from collections.abc import Sequence

_LONGEST, _SHORTEST = 4, 2  # tokens that are looked up; the longest match wins
MOST = 7  # guessed tokens; with the one before them a step has 8


class PromptLookup:
    """The places of all short runs of tokens in a text that grows."""

    def __init__(self) -> None:
        self._seen = 0
        # By run of tokens, the last two places where it ended. The last may be the end of the text, with nothing after.
        self._places: dict[tuple[int, ...], tuple[int, int | None]] = {}
        self._allowed = 3

    def guess(self, text: Sequence[int], most: int) -> list[int]:
        """Tokens that may follow; at most `most`, maybe none. `text` begins with that of the call before."""
        self._read(text)
        count = min(most, self._allowed)
        for length in range(_LONGEST, _SHORTEST - 1, -1):
            last, before = self._places.get(tuple(text[-length:]), (0, None))
            place = before if last == len(text) else last
            if place and length <= len(text):
                found: list[int] = []
                for at in range(place, place + count):  # beyond the end the guess goes on with itself
                    found.append(text[at] if at < len(text) else found[at - len(text)])
                return found
        return []

    def report(self, guessed: int, right: int) -> None:
        """How far a guess was right: longer ones after success, shorter ones after failure."""
        if guessed:
            self._allowed = min(MOST, 2 * right + 1) if right == guessed else max(1, right)

    def _read(self, text: Sequence[int]) -> None:
        for end in range(max(self._seen, _SHORTEST - 1) + 1, len(text) + 1):
            for length in range(_SHORTEST, min(_LONGEST, end) + 1):
                run = tuple(text[end - length : end])
                self._places[run] = (end, self._places.get(run, (None, None))[0])
        self._seen = len(text)
