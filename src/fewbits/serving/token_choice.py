"""What changes logits before a token is drawn: penalties, biases, and what the answer's form allows.

V: vocabulary. Knows no network and no engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


class Constraint(Protocol):
    """What an answer may look like; knows the answer so far."""

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Which tokens may come next: bool [V], at least one."""

    def wrote(self, token: int) -> None:
        """Go on after this token, one of those that were allowed."""


@dataclass(frozen=True)
class Adjustments:
    """What a request adds to logits.

    Source: OpenAI's reference, "frequency and presence penalties": a token that the answer has c times loses
    c * frequency + (c > 0) * presence. The prompt's tokens don't count.

    Attributes:
        bias: added to tokens' logits, by token.
    """

    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    bias: Mapping[int, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.frequency_penalty or self.presence_penalty or self.bias)


class LogitChanges:
    """The changes for one answer, which grow with it."""

    def __init__(self, adjustments: Adjustments, constraint: Constraint | None, vocabulary: int) -> None:
        self._adjustments = adjustments
        self._constraint = constraint
        self._penalized = bool(adjustments.frequency_penalty or adjustments.presence_penalty)
        self._written: set[int] = set()
        self._added: Floats | None = None
        if adjustments:
            self._added = np.zeros(vocabulary, np.float32)
            for token, bias in adjustments.bias.items():
                self._added[token] += bias

    def apply(self, logits: Floats) -> None:
        """Change logits float32 [V] in place.

        Raises:
            ServingError: the constraint can't be followed any further.
        """
        if self._added is not None:
            logits += self._added
        if self._constraint is not None:
            logits[~self._constraint.allowed()] = -np.inf

    def wrote(self, token: int) -> None:
        """Go on after this token."""
        if self._constraint is not None:
            self._constraint.wrote(token)
        if self._penalized and self._added is not None:
            self._added[token] -= self._adjustments.frequency_penalty
            if token not in self._written:
                self._added[token] -= self._adjustments.presence_penalty
                self._written.add(token)
