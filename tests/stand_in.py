"""The engine's methods by transformers, for the time until the native engine is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


class TransformersEngine:
    def __init__(self, directory: Path, metadata: Any, context: int, sequences: int) -> None:
        from transformers import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(directory).float().eval()
        self.vocabulary = self._model.config.vocab_size
        self.context = context
        self.sequences = sequences
        self.metadata = metadata
        self._held: list[list[int]] = [[] for _ in range(sequences)]

    def step(self, sequences, tokens, wanted):
        import torch

        new = [list(held) for held in self._held]
        ends = []
        for sequence, token in zip(sequences.tolist(), tokens.tolist(), strict=True):
            new[sequence].append(token)
            assert len(new[sequence]) <= self.context
            assert 0 <= token < self.vocabulary
            ends.append((sequence, len(new[sequence]) - 1))
        rows = {}
        with torch.no_grad():
            for sequence in {ends[i][0] for i in wanted.tolist()}:
                rows[sequence] = self._model(torch.tensor([new[sequence]])).logits[0].numpy()
        self._held = new
        if not len(wanted):
            return np.empty((0, self.vocabulary), np.float32)
        return np.stack([rows[ends[i][0]][ends[i][1]] for i in wanted.tolist()])

    def length(self, sequence: int) -> int:
        return len(self._held[sequence])

    def truncate(self, sequence: int, length: int) -> None:
        del self._held[sequence][length:]

    def copy(self, source: int, target: int, length: int) -> None:
        self._held[target] = self._held[source][:length]
