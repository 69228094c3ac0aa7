"""The engine's sequences as slots that answers take and leave, with what is in them kept for the next one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from fewbits.engine.engine import Engine
from fewbits.errors import FewbitsError
from fewbits.serving.completion import Completion

# Tokens of a prefix that are worth copying from another slot.
_WORTH_COPYING = 16


class Slots:
    """Which answer is in which sequence of the engine, and which tokens each sequence holds."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.used: dict[Completion, int] = {}  # in the order of arrival
        self._held: list[list[int]] = [[] for _ in range(engine.sequences)]
        # Free ones, the longest unused first.
        self._free: list[int] = list(range(engine.sequences))

    @property
    def free(self) -> int:
        """How many answers have room."""
        return len(self._free)

    def take(self, completion: Completion) -> None:
        """Put an answer into a free slot, with as much of its prompt as some slot holds already.

        At least the prompt's last token is left to be fed, since its logits are wanted.
        """
        most = len(completion.prompt) - 1
        common = [min(_common_prefix(held, completion.prompt), most) for held in self._held]
        source = max(range(len(common)), key=lambda candidate: common[candidate])
        # A conversation goes on in its slot; what merely begins alike leaves it to the conversation.
        goes_on = source in self._free and 2 * common[source] >= len(self._held[source])
        slot = source if goes_on else self._free[0]
        kept = common[slot]
        held, self._held[slot] = self._held[slot], []  # so it stays if the engine fails
        if common[source] >= kept + _WORTH_COPYING:
            kept = common[source]
            held = self._held[source]
            self.engine.copy(source, slot, kept)
        else:
            self.engine.truncate(slot, kept)
        self._held[slot] = held[:kept]
        self._free.remove(slot)
        self.used[completion] = slot
        completion.fed = completion.cached = kept

    def feed(self, shares: Sequence[tuple[Completion, int]]) -> npt.NDArray[np.float32]:
        """Give the engine the next tokens of each answer, as one batch.

        Returns:
            float32 [M, V]: logits for the M answers all of whose tokens are fed then, in the order of `shares`.

        Raises:
            EngineError: the engine refused; nothing has changed.
        """
        sequences: list[int] = []
        tokens: list[int] = []
        wanted: list[int] = []
        for completion, count in shares:
            sequences += [self.used[completion]] * count
            tokens += completion.tokens[completion.fed : completion.fed + count]
            if count == completion.pending:
                wanted.append(len(tokens) - 1)
        logits = self.engine.step(
            np.array(sequences, np.int32), np.array(tokens, np.int32), np.array(wanted, np.int32)
        )
        for completion, count in shares:
            new = completion.tokens[completion.fed : completion.fed + count]
            self._held[self.used[completion]] += new
            completion.fed += count
        return logits

    def restore(self, completion: Completion) -> None:
        """Undo what a failed step may have left behind."""
        slot = self.used[completion]
        if self.engine.length(slot) > completion.fed:
            self.engine.truncate(slot, completion.fed)

    def leave(self, completion: Completion, *, empty: bool = False) -> None:
        """Make the slot free; its tokens stay for a prompt that begins like them, unless `empty`."""
        slot = self.used.pop(completion)
        self._free.append(slot)
        if empty:
            self._held[slot] = []
            with suppress(FewbitsError):  # emptied once more when it is taken
                self.engine.truncate(slot, 0)


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    for at, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return at
    return min(len(first), len(second))
