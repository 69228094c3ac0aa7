"""The loop of decoding: logits to a token, the token to the engine, and again."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np

from fewbits._native import Sampler
from fewbits.engine.prompt_lookup import MOST, PromptLookup
from fewbits.engine.sampling import Sampling
from fewbits.engine.slot import Floats, Slot
from fewbits.errors import EngineError

_NONE = np.zeros(0, np.int32)


class Decoding:
    """Tokens that continue a prompt, without end; who reads them stops.

    Attributes:
        cached: tokens of the prompt that the slot held already.
        guessed: tokens that were guessed, with speculation.
        accepted: those of them that were right.
    """

    def __init__(
        self, slot: Slot, prompt: Sequence[int], sampling: Sampling, limit: int, *, speculate: bool = False
    ) -> None:
        """Decoding that hasn't begun.

        Args:
            slot: where the text lives meanwhile.
            prompt: token ids, at least one.
            sampling: how tokens are chosen.
            limit: tokens that will be asked for at most; with the prompt's they fit into the context.
            speculate: guess tokens by prompt lookup. The output stays the same, speed changes.
        """
        self.cached = self.guessed = self.accepted = 0
        self._slot = slot
        self._name = object()  # the slot's note of who owns it must not keep us alive
        self._prompt = len(prompt)
        self._text = list(prompt)
        self._end = len(prompt) + limit
        self._sampler: Sampler = sampling.sampler()
        self._window = 0 if sampling.repetition_penalty == 1 else sampling.repetition_window
        self._lookup = PromptLookup() if speculate else None

    def tokens(self) -> Generator[int, None, None]:
        """The tokens.

        Raises:
            EngineError: the engine can't go on, or its logits aren't numbers.
        """
        while len(self._text) < self._end:
            guess = self._guess()
            right = 0
            for row, expected in zip(self._logits(guess), [*guess, None], strict=True):
                token = self._choose(row)
                self._text.append(token)
                if expected is not None and token == expected:
                    right += 1
                    self.accepted += 1
                yield token
                if token != expected or len(self._text) >= self._end:
                    break
            if self._lookup is not None:
                self._lookup.report(len(guess), right)

    def _guess(self) -> list[int]:
        if self._lookup is None or len(self._text) == self._prompt:
            return []
        guess = self._lookup.guess(self._text, min(MOST, self._end - len(self._text) - 1))
        self.guessed += len(guess)
        return guess

    def _logits(self, guess: list[int]) -> Floats:
        """Logits after the text, and after each token guessed to follow: float32 [1 + guessed, V]."""
        slot = self._slot
        with slot.lock:
            first = len(self._text) == self._prompt
            held = len(self._text) - 1
            if not slot.owned_by(self._name):  # the beginning, or another text has been here meanwhile
                held = slot.begin(self._name, self._text)
                self.cached = held if first else self.cached
            else:
                slot.truncate(held)  # wrong guesses
            return slot.feed(self._text[held:] + guess, 1 + len(guess))

    def _choose(self, logits: Floats) -> int:
        recent = np.array(self._text[-self._window :], np.int32) if self._window else _NONE
        try:
            return self._sampler.choose(logits, recent)
        except ValueError as error:
            raise EngineError(
                "the model's logits are no numbers",
                found=str(error),
                action="Its weights are damaged, or overflow",
            ) from error
