"""What a model writes: its text piece by piece, and in the end all there is to know of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from fewbits.engine.decoding import Decoding
from fewbits.engine.text_stream import TextStream


@dataclass(frozen=True)
class Generation:
    """What a model wrote.

    Attributes:
        text: the continuation, without the prompt.
        tokens: tokens of it, the one that ended it not counted.
        prompt_tokens: tokens read before, chat markup included.
        tokens_per_second: speed after the first token; 0 for fewer than two.
        seconds: wall time after loading.
        stopped: ``end`` of the model's answer, a ``stop`` string, ``length`` asked for, the model's ``context`` is
            full, or the ``reader`` wanted no more.
        path: the model.
        activations: ``runtime`` (rounded to 8 bits) or ``float``.
        runtime: ``engine`` (our own) or ``transformers``.
        cached_tokens: tokens of the prompt that were computed for an earlier text.
        seconds_to_first_token: wall time after loading until the first token was chosen.
        guessed_tokens: tokens guessed by speculation.
        accepted_tokens: those of them that were right.
        ids: the tokens.
    """

    text: str
    tokens: int
    prompt_tokens: int
    tokens_per_second: float
    seconds: float
    stopped: str
    path: str
    activations: str
    runtime: str = "transformers"
    cached_tokens: int = 0
    seconds_to_first_token: float = 0.0
    guessed_tokens: int = 0
    accepted_tokens: int = 0
    ids: tuple[int, ...] = ()


class Answer:
    """Text pieces as they come: whole characters, and nothing that may still become a stop string."""

    def __init__(
        self,
        decoding: Decoding,
        text: TextStream,
        ends: frozenset[int],
        *,
        asked: int,
        room: int,
        prompt_tokens: int,
        path: str,
    ) -> None:
        """An answer that hasn't begun: nothing is computed before the first piece is asked for.

        Args:
            decoding: gives the tokens.
            text: makes text of them.
            ends: tokens that end the answer.
            asked: tokens asked for.
            room: tokens that the context has room for.
            prompt_tokens: how long the prompt was.
            path: the model.
        """
        self._decoding, self._stream, self._ends = decoding, text, ends
        self._limit, self._at_limit = min(asked, room), "length" if asked <= room else "context"
        self._prompt_tokens, self._path = prompt_tokens, path
        self._stopped: str | None = None
        self._ids: list[int] = []
        self._given: list[str] = []
        self._started = self._first = self._last = 0.0
        self._tokens = decoding.tokens()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        """The next piece, never empty."""
        # No generator of our own: it and this object would keep each other, and the engine, alive.
        if not self._started:
            self._started = self._first = self._last = time.perf_counter()
        while self._stopped is None:
            if piece := self._next():
                self._given.append(piece)
                return piece
        self._tokens.close()
        if rest := self._stream.finish():
            self._given.append(rest)
            return rest
        raise StopIteration

    @property
    def generation(self) -> Generation:
        """What has been written so far."""
        count = len(self._ids)
        speed = (count - 1) / (self._last - self._first) if count > 1 and self._last > self._first else 0.0
        return Generation(
            text="".join(self._given),
            tokens=count,
            prompt_tokens=self._prompt_tokens,
            tokens_per_second=speed,
            seconds=self._last - self._started,
            stopped=self._stopped or "reader",
            path=self._path,
            activations="runtime",
            runtime="engine",
            cached_tokens=self._decoding.cached,
            seconds_to_first_token=self._first - self._started,
            guessed_tokens=self._decoding.guessed,
            accepted_tokens=self._decoding.accepted,
            ids=tuple(self._ids),
        )

    def finish(self) -> Generation:
        """Write all the rest."""
        for _ in self:
            pass
        return self.generation

    def _next(self) -> str:
        token = next(self._tokens, None)
        if token is None:  # an error ended the tokens, and was told
            self._stopped = "reader"
            return ""
        self._last = time.perf_counter()
        self._first = self._last if not self._ids else self._first
        if token in self._ends:
            self._stopped = "end"
            return ""
        self._ids.append(token)
        text = self._stream.add(token)
        if self._stream.stopped_by is not None:
            self._stopped = "stop"
        elif len(self._ids) == self._limit:
            self._stopped = self._at_limit
        return text
