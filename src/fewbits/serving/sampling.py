"""Interim: replaced by fewbits.engine.sampling."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_window: int = 64
    seed: int = 0


class NumpySampler:
    """Interim."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    def choose(self, logits: npt.NDArray[np.float32], recent: npt.NDArray[np.int32]) -> int:
        """See the protocol."""
        options = self._sampling
        logits = logits.astype(np.float64)
        if options.repetition_penalty != 1 and len(recent):
            seen = np.unique(recent[-options.repetition_window :])
            values = logits[seen]
            logits[seen] = np.where(
                values > 0, values / options.repetition_penalty, values * options.repetition_penalty
            )
        if not np.isfinite(logits.max()):
            raise ValueError("no token has a finite logit")
        if options.temperature == 0:
            return int(logits.argmax())
        order = np.argsort(-logits, kind="stable")
        if options.top_k:
            order = order[: options.top_k]
        weights = np.exp(logits[order] - logits[order[0]])
        total = np.cumsum(weights / weights.sum())
        keep = (np.concatenate([[0.0], total[:-1]]) < options.top_p) & (weights >= options.min_p)
        order = order[keep]
        weights = np.exp((logits[order] - logits[order[0]]) / options.temperature)
        total = np.cumsum(weights)
        at = int(np.searchsorted(total, self._random.random() * total[-1], side="right"))
        return int(order[min(at, len(order) - 1)])
