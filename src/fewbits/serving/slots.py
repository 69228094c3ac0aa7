"""The engine's sequences as slots that answers take and leave, with what is in them kept for the next one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fewbits.engine.engine import Engine
from fewbits.errors import FewbitsError
from fewbits.serving.completion import Completion
from fewbits.serving.token_choice import Floats

# Tokens of a prefix that are worth copying from another slot.
_WORTH_COPYING = 16
# Tokens that are compared at a time.
_COMPARED = 64


@dataclass(frozen=True)
class _Leader:
    """An answer whose prompt begins like another one's: in `shared` tokens, which it hasn't fed yet."""

    answer: Completion
    shared: int

    @property
    def reading(self) -> bool:
        """Whether it is worth waiting for any longer."""
        return not self.answer.cancelled and self.answer.fed < self.shared


class Slots:
    """Which answer is in which sequence of the engine, and which tokens each sequence holds."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.used: dict[Completion, int] = {}  # in the order of arrival
        # Those that wait for a beginning of their prompt, and the answer whose prompt begins alike.
        self._followers: dict[Completion, _Leader] = {}
        self._held: list[list[int]] = [[] for _ in range(engine.sequences)]
        # Free ones, the longest unused first.
        self._free: list[int] = list(range(engine.sequences))

    @property
    def free(self) -> int:
        """How many answers have room."""
        return len(self._free)

    def take(self, completion: Completion) -> None:
        """Put an answer into a free slot, with as much of its prompt as some slot holds already.

        At least the prompt's last token is left to be fed, since its logits are wanted. What another answer is about to
        feed isn't fed twice: see `join_leaders`.
        """
        common = self._common(completion)
        source = max(range(len(common)), key=lambda candidate: common[candidate])
        leader = self._leader(completion, common[source])
        # A conversation goes on in its slot; what merely begins alike leaves it to the conversation.
        goes_on = source in self._free and 2 * common[source] >= len(self._held[source])
        slot = source if goes_on and leader is None else self._free[0]
        if leader is None:
            self._begin(completion, slot)
        else:
            self._followers[completion] = leader
        self._free.remove(slot)
        self.used[completion] = slot

    def _common(self, completion: Completion) -> list[int]:
        """How many of a prompt's tokens each slot holds, of those that needn't be fed."""
        return [min(_common_prefix(held, completion.prompt), completion.spared) for held in self._held]

    def _begin(self, completion: Completion, slot: int) -> None:
        """Make a slot hold as much of the prompt as any slot does."""
        common = self._common(completion)
        source = max(range(len(common)), key=lambda candidate: common[candidate])
        kept = common[slot]
        held, self._held[slot] = self._held[slot], []  # so it stays if the engine fails
        if common[source] >= kept + _WORTH_COPYING:
            kept = common[source]
            held = self._held[source]
            self.engine.copy(source, slot, kept)
        else:
            self.engine.truncate(slot, kept)
        self._held[slot] = held[:kept]
        completion.fed = completion.cached = kept

    def _leader(self, completion: Completion, held: int) -> _Leader | None:
        """The answer that will feed the longest beginning of this one's prompt, if that is worth waiting for.

        Args:
            completion: whose prompt it is.
            held: tokens of it that some slot holds already.
        """
        found: _Leader | None = None
        for other in self.used:
            shared = min(_common_prefix(other.prompt, completion.prompt), completion.spared)
            if other is completion or other.cancelled or shared <= other.fed:
                continue
            if shared >= (held + _WORTH_COPYING if found is None else found.shared + 1):
                found = _Leader(other, shared)
        return found

    def join_leaders(self) -> list[tuple[Completion, Exception]]:
        """Let those who waited for another answer's prompt go on where it is read, or where it won't be.

        Returns:
            Those for which the engine failed, with the reason.
        """
        failed: list[tuple[Completion, Exception]] = []
        for completion, leader in list(self._followers.items()):
            if leader.reading and leader.answer in self.used:
                continue
            del self._followers[completion]
            another = self._leader(completion, max(self._common(completion)))
            # One that waits itself isn't followed here, so that nobody waits in a circle.
            if another is not None and another.answer not in self._followers:
                self._followers[completion] = another
                continue
            try:
                self._begin(completion, self.used[completion])
            except Exception as error:  # noqa: BLE001 - no memory to copy: this answer's end only
                failed.append((completion, error))
        return failed

    def ready(self) -> list[Completion]:
        """The answers that don't wait for another one's prompt, in the order of arrival."""
        return [completion for completion in self.used if completion not in self._followers]

    def feed(self, shares: Sequence[tuple[Completion, int]]) -> tuple[Floats, list[range]]:
        """Give the engine the next tokens of each answer, as one batch.

        Returns:
            Logits float32 [M, V], and which of these rows are each answer's: `Completion.logits_after` its last tokens.

        Raises:
            EngineError: the engine refused; nothing has changed.
        """
        sequences: list[int] = []
        tokens: list[int] = []
        wanted: list[int] = []
        ends: list[int] = []  # of each answer's rows of logits
        for completion, count in shares:
            sequences += [self.used[completion]] * count
            tokens += completion.tokens[completion.fed : completion.fed + count]
            wanted += range(len(tokens) - completion.logits_after(count), len(tokens))
            ends.append(len(wanted))
        logits = self.engine.step(
            np.array(sequences, np.int32), np.array(tokens, np.int32), np.array(wanted, np.int32)
        )
        for completion, count in shares:
            new = completion.tokens[completion.fed : completion.fed + count]
            self._held[self.used[completion]] += new
            completion.fed += count
        return logits, [range(first, last) for first, last in pairwise([0, *ends])]

    def restore(self, completion: Completion) -> None:
        """Undo what a failed step may have left behind."""
        slot = self.used[completion]
        if self.engine.length(slot) > completion.fed:
            self.engine.truncate(slot, completion.fed)

    def leave(self, completion: Completion, *, empty: bool = False) -> None:
        """Make the slot free; its tokens stay for a prompt that begins like them, unless `empty`."""
        slot = self.used.pop(completion)
        self._followers.pop(completion, None)
        self._free.append(slot)
        if empty:
            self._held[slot] = []
            with suppress(FewbitsError):  # emptied once more when it is taken
                self.engine.truncate(slot, 0)


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Tokens at the beginning of both lists."""
    end = min(len(first), len(second))
    at = 0
    while at < end and first[at : at + _COMPARED] == second[at : at + _COMPARED]:
        at += _COMPARED
    while at < end and first[at] == second[at]:
        at += 1
    return min(at, end)
