"""One prompt on its way to becoming an answer, and what is told of it meanwhile.

V: vocabulary. Knows no network and no engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from fewbits._native import Sampler
from fewbits.engine.text_stream import TextStream
from fewbits.serving.token_choice import Floats, LogitChanges

_LEAST_LOGPROB = -9999.0  # JSON has no infinity; OpenAI's value for it
_MOST_TOLD = 64  # tokens of a prompt whose logprobs are told at a time: others wait meanwhile
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class TokenLogprob:
    """A token that was written, with natural logarithms of probabilities before sampling changed them.

    Attributes:
        logprob: None for the first token of a text, which follows nothing.
        top: the most likely tokens in its place with theirs, best first; as many as were asked for.
    """

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Piece:
    """Text that is new and certain, and the tokens since the last piece, if their logprobs were asked for."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Finished:
    """The answer is whole.

    Attributes:
        reason: ``stop`` at an end token or stop string, ``length`` at the limit or at the end of the context.
        prompt_tokens: tokens that the answer follows.
        cached_tokens: those of them whose keys and values were there already.
        written_tokens: tokens of the answer; the one that ended it isn't counted.
    """

    reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    written_tokens: int


@dataclass(frozen=True)
class Failed:
    """The answer can't go on; this is why."""

    error: Exception


Event = Piece | Finished | Failed


@dataclass(eq=False)
class Completion:
    """A prompt, how it is to be continued, and how far that is. The scheduler's thread owns it.

    Attributes:
        prompt: token ids, at least one.
        limit: tokens to write at most; 0 to read the prompt only.
        sampler: chooses tokens; no other answer's.
        changes: what is done to logits before; None: nothing.
        text: makes text of the tokens.
        end_ids: tokens that end an answer.
        top_logprobs: how many likely tokens are told with each token; None: no logprobs.
        recent: how many of the last tokens the sampler is shown.
        tells_prompt: whether logprobs of the prompt's tokens are told, too, from the second one on.
        on_event: called in the scheduler's thread; must not block.
        cancelled: nobody waits for it any more.
        tokens: the prompt and what has been written.
        fed: how many of them the engine holds.
        cached: how many it held before.
        reason: why the answer has ended; None while it hasn't.
        submitted: when it was queued, by `time.monotonic`.
    """

    prompt: list[int]
    limit: int
    sampler: Sampler
    text: TextStream
    end_ids: frozenset[int]
    on_event: Callable[[Event], None]
    changes: LogitChanges | None = None
    top_logprobs: int | None = None
    recent: int = 0
    tells_prompt: bool = False
    cancelled: bool = False
    tokens: list[int] = field(init=False)
    fed: int = 0
    cached: int = 0
    reason: FinishReason | None = None
    submitted: float = 0.0
    _logits: Floats | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)

    @property
    def pending(self) -> int:
        """Tokens that the engine hasn't been fed; 1 while writing."""
        return len(self.tokens) - self.fed

    @property
    def written(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - len(self.prompt)

    @property
    def spared(self) -> int:
        """Tokens of the prompt that needn't be fed if a slot holds them: their logits aren't wanted."""
        return 0 if self.tells_prompt else len(self.prompt) - 1

    @property
    def most_fed(self) -> int:
        """Tokens that may be fed at a time."""
        return min(self.pending, _MOST_TOLD) if self.tells_prompt else self.pending

    def logits_after(self, count: int) -> int:
        """How many of the next `count` tokens logits are wanted after, the last ones."""
        if self.tells_prompt and self.fed < len(self.prompt):
            return count
        return 1 if count == self.pending else 0

    def read(self, logits: Floats) -> None:
        """Tell of the prompt's tokens whose logits float32 [k, V] are those after the last k tokens fed."""
        if self.tells_prompt and not self.written:
            first = self.fed - len(logits) + 1
            known = zip(logits, self.prompt[first : self.fed + 1], strict=False)
            told = tuple(token_logprob(row, token, self.top_logprobs or 0) for row, token in known)
            if told:
                self.on_event(Piece("", told))
        if not (self.limit or self.pending):
            self._finish("length", "", ())

    def prepare(self, logits: Floats) -> None:
        """Make logits float32 [V] those that a token is chosen by, in place.

        Raises:
            ServingError: no token may follow.
        """
        if self.changes is None:
            self._logits = logits
            return
        self._logits = logits if self.top_logprobs is None else logits.copy()
        self.changes.apply(logits)

    def recent_tokens(self) -> npt.NDArray[np.int32]:
        """What the sampler is shown: the last tokens, oldest first."""
        return np.array(self.tokens[max(0, len(self.tokens) - self.recent) :], np.int32)

    def write(self, token: int) -> None:
        """Go on with the token that was chosen, and tell of it; `reason` is set when the answer is whole."""
        logits, self._logits = self._logits, None
        if token in self.end_ids:
            self._finish("stop", "", ())
            return
        self.tokens.append(token)
        if self.changes is not None:
            self.changes.wrote(token)
        logprobs: tuple[TokenLogprob, ...] = ()
        if self.top_logprobs is not None and logits is not None:
            logprobs = (token_logprob(logits, token, self.top_logprobs),)
        text = self.text.add(token)
        if self.text.stopped_by is not None:
            self._finish("stop", text, logprobs)
        elif self.written == self.limit:
            self._finish("length", text, logprobs)
        elif text or logprobs:
            self.on_event(Piece(text, logprobs))

    def _finish(self, reason: FinishReason, text: str, logprobs: tuple[TokenLogprob, ...]) -> None:
        text += self.text.finish()
        if text or logprobs:
            self.on_event(Piece(text, logprobs))
        self.reason = reason
        self.on_event(Finished(reason, len(self.prompt), self.cached, self.written))


def token_logprob(logits: Floats, token: int, top: int) -> TokenLogprob:
    """Logprobs of a token and of the `top` most likely ones, from logits float32 [V]."""
    shifted = logits.astype(np.float64) - logits.max()
    logprobs = np.maximum(shifted - np.log(np.exp(shifted).sum()), _LEAST_LOGPROB)
    count = min(top, len(logits))
    best = np.argpartition(-logits, count - 1)[:count] if count else np.empty(0, np.int64)
    best = best[np.lexsort((best, -logits[best]))]
    likely = tuple((int(index), float(logprobs[index])) for index in best)
    return TokenLogprob(token, float(logprobs[token]), likely)
