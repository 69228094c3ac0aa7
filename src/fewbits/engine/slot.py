"""One sequence of the engine, and which tokens it holds: what a new text shares with them isn't computed again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from fewbits.errors import EngineError

Floats: TypeAlias = npt.NDArray[np.float32]
Tokens: TypeAlias = npt.NDArray[np.int32]

# Tokens of a prompt that go through the model together. Between two such steps Ctrl-C is heard.
_STEP = 512


class SequenceEngine(Protocol):
    """What writing text needs of `fewbits.engine.engine.Engine`; V: vocabulary, N tokens, M of them asked for."""

    @property
    def vocabulary(self) -> int:
        """V."""

    @property
    def context(self) -> int:
        """Positions that a sequence may hold."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The file's."""

    @property
    def memory_bytes(self) -> int:
        """Held beyond the mapped file."""

    def step(self, sequences: Tokens, tokens: Tokens, wanted: Tokens) -> Floats:
        """Append tokens int32 [N] to their sequences int32 [N]; logits float32 [M, V] after the wanted int32 [M]."""

    def length(self, sequence: int) -> int:
        """Positions that a sequence holds."""

    def truncate(self, sequence: int, length: int) -> None:
        """Forget positions from `length` on."""


class Slot:
    """A sequence that texts take turns in."""

    def __init__(self, engine: SequenceEngine, number: int = 0) -> None:
        self.engine = engine
        self.lock = Lock()
        self._number = number
        self._tokens: list[int] = []
        self._owner: object = None

    def begin(self, owner: object, tokens: Sequence[int]) -> int:
        """Make the slot hold a beginning of `tokens`; how many of them are left in it. The last one never is."""
        kept = min(_common_prefix(self._tokens, tokens), len(tokens) - 1)
        self._owner = owner
        # A step that was interrupted may have been taken, without our having heard of it.
        if self.engine.length(self._number) != kept:
            self.engine.truncate(self._number, kept)
        del self._tokens[kept:]
        return kept

    def clear(self) -> None:
        """Forget all tokens."""
        self._owner = None
        self.engine.truncate(self._number, 0)
        self._tokens.clear()

    def owned_by(self, owner: object) -> bool:
        """Whether nobody else has begun here since."""
        return self._owner is owner

    def feed(self, tokens: Sequence[int], wanted: int) -> Floats:
        """Append tokens; logits float32 [wanted, V] after the last ones."""
        pieces = []
        for first in range(0, len(tokens), _STEP):
            piece = tokens[first : first + _STEP]
            rows = np.arange(max(0, len(tokens) - wanted - first), len(piece), dtype=np.int32)
            numbers = np.full(len(piece), self._number, np.int32)
            logits = self.engine.step(numbers, np.array(piece, np.int32), rows)
            self._tokens += piece
            if len(rows):
                pieces.append(logits)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def truncate(self, length: int) -> None:
        """Forget the tokens from `length` on."""
        if length < len(self._tokens):
            self.engine.truncate(self._number, length)
            del self._tokens[length:]


def checked_tokens(engine: SequenceEngine, tokens: Sequence[int], most: int) -> list[int]:
    """Token ids as integers.

    Raises:
        EngineError: there are none, more than `most`, or some that the model doesn't have.
    """
    ids = [int(token) for token in tokens]
    if not ids:
        raise EngineError("the prompt is empty", action="Give the model something to continue")
    if len(ids) > most:
        raise EngineError(
            "the prompt is too long",
            found=f"{len(ids)} tokens",
            allowed=f"up to {most} in a context of {engine.context}",
            action="Shorten it, or open the model with a longer context",
        )
    outside = [token for token in ids if not 0 <= token < engine.vocabulary]
    if outside:
        raise EngineError(
            "the model has no such token", found=outside[0], allowed=f"0 to {engine.vocabulary - 1}"
        )
    return ids


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    for at, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return at
    return min(len(first), len(second))
