"""Greedy continuations by the engine itself, alone or beside other sequences, with a hash of every logit on the way."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fewbits.engine.engine import KvCache, open_engine

COMPANIONS = 3
_LONGEST_PIECE = 24


@dataclass(frozen=True)
class Continuation:
    """Tokens, and SHA-256 of the logits that they were chosen by."""

    ids: tuple[int, ...]
    logits_sha256: str


class Companion:
    """A sequence that reads random tokens in pieces of random lengths, forgets some, and now and then skips a turn."""

    def __init__(self, slot: int, vocabulary: int, room: int) -> None:
        self.slot, self._vocabulary, self._room, self._length = slot, vocabulary, room, 0
        self._random = np.random.default_rng(slot)

    def piece(self) -> list[int]:
        """Tokens for the next step; none where it skips."""
        kinds = self._random.integers(0, 4)
        count = 0 if kinds == 0 else 1 if kinds < 3 else int(self._random.integers(1, _LONGEST_PIECE))
        count = min(count, self._room - self._length)
        self._length += count
        return [int(token) for token in self._random.integers(0, self._vocabulary, count)]

    def forgets(self) -> int | None:
        """The length to cut it to, where it does."""
        if self._length < self._room:
            return None
        self._length = int(self._random.integers(0, self._room))
        return self._length


def continuation(
    path: Path, prompt: list[int], count: int, *, threads: int, companions: int = 0, kv_cache: KvCache = "f16"
) -> Continuation:
    """The most likely `count` tokens after a prompt, one step each."""
    context = len(prompt) + count
    engine = open_engine(path, threads=threads, context=context, sequences=companions + 1, kv_cache=kv_cache)
    slot = companions // 2  # others before it in the batch, and behind it
    others = [Companion(i, engine.vocabulary, context) for i in range(companions + 1) if i != slot]
    ids: list[int] = []
    digest, wanted = hashlib.sha256(), 0
    fed = list(prompt)
    for _ in range(count):
        sequences: list[int] = []
        tokens: list[int] = []
        for other in sorted([*others, None], key=lambda one: slot if one is None else one.slot):
            piece = fed if other is None else other.piece()
            if other is None:
                wanted = len(tokens) + len(piece) - 1
            sequences += [slot if other is None else other.slot] * len(piece)
            tokens += piece
        logits = engine.step(sequences, tokens, [wanted])[0]
        digest.update(logits.tobytes())
        ids.append(int(logits.argmax()))
        fed = ids[-1:]
        for other in others:
            if (length := other.forgets()) is not None:
                engine.truncate(other.slot, length)
    return Continuation(tuple(ids), digest.hexdigest())
