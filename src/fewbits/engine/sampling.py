"""How the next token is chosen."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import isfinite
from typing import TypedDict

from fewbits._native import Sampler
from fewbits.errors import EngineError

_SEEDS = 1 << 64


class SamplingOptions(TypedDict, total=False):
    """The fields of `Sampling`."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    repetition_window: int
    seed: int | None


@dataclass(frozen=True)
class Sampling:
    """What a token is drawn from; the defaults take the most likely one always.

    Applied in llama.cpp's order: penalty, top-k, top-p, min-p, temperature. Definitions and their sources are in
    native/engine/sampler.h. Equal seeds and logits give equal tokens on every machine.

    Attributes:
        temperature: divides the logits of what the other numbers leave; 0 takes the most likely token.
        repetition_penalty: divides positive and multiplies negative logits of tokens that came lately; 1 does nothing.
        repetition_window: how many of the last tokens that concerns, the prompt's among them.
        top_k: this many tokens stay; 0: all.
        top_p: the fewest tokens stay that together have this probability; 1: all.
        min_p: tokens stay that have this share of the largest probability or more; 0: all.
        seed: 0 … 2**64 - 1; None for another one each time.

    Raises:
        EngineError: a number is out of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_window: int = 64
    seed: int | None = None

    def __post_init__(self) -> None:
        _require("temperature", self.temperature, self.temperature >= 0, "0 or more")
        _require_integer("top_k", self.top_k, 1 << 31, "0 (all tokens) or more")
        _require("top_p", self.top_p, 0 < self.top_p <= 1, "more than 0, up to 1 (all tokens)")
        _require("min_p", self.min_p, 0 <= self.min_p <= 1, "0 (all tokens) to 1")
        _require(
            "repetition_penalty",
            self.repetition_penalty,
            self.repetition_penalty > 0,
            "more than 0; 1 does nothing",
        )
        _require_integer("repetition_window", self.repetition_window, 1 << 31, "0 or more tokens")
        if self.seed is not None:
            _require_integer("seed", self.seed, _SEEDS, "0 to 2**64 - 1")

    @property
    def greedy(self) -> bool:
        """Whether no chance is involved."""
        return self.temperature == 0 or self.top_k == 1

    def sampler(self) -> Sampler:
        """A sampler at the beginning of its random numbers."""
        return Sampler(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            repetition_window=self.repetition_window,
            seed=int.from_bytes(os.urandom(8)) if self.seed is None else self.seed,
        )


def _require(name: str, value: float, fits: bool, allowed: str) -> None:
    if not (isfinite(value) and fits):
        raise EngineError(f"{name} is out of range", found=value, allowed=allowed)


def _require_integer(name: str, value: int, end: int, allowed: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < end:
        raise EngineError(f"{name} is out of range", found=value, allowed=allowed)
