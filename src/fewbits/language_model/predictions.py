"""A model's hidden states, and the logits that its head gives to them, apart: logits need not all be there at once.

Dimension letters: B sequences, S positions, T tokens, D width of the hidden state, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Decoded(nn.Module):
    """Stands where a model's decoder was and gives a hidden state that is known already."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self._hidden = hidden

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The known hidden state."""
        from transformers.modeling_outputs import MoeModelOutputWithPast

        del args, kwargs
        return MoeModelOutputWithPast(last_hidden_state=self._hidden)


class Predictor:
    """A causal language model of transformers in its two halves."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._name: str = model.base_model_prefix
        self._decoder: Any = getattr(model, self._name)

    def hidden(self, ids: Tensor) -> Tensor:
        """What the head reads, [B, S, D], of token ids int64 [B, S]; differentiable."""
        state: Tensor = self._decoder(input_ids=ids, use_cache=False).last_hidden_state
        return state

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [T, V] of hidden states [T, D], scaled or capped as the model does; differentiable."""
        setattr(self.model, self._name, Decoded(hidden[None]))
        try:
            ids = torch.zeros((1, len(hidden)), dtype=torch.int64)
            logits: Tensor = self.model(input_ids=ids, use_cache=False).logits[0]
        finally:
            setattr(self.model, self._name, self._decoder)
        return logits

    def forget_decoder(self) -> None:
        """Let go of all weights but the head's; `hidden` can't be asked for any more."""
        self._decoder = nn.Identity()
        setattr(self.model, self._name, self._decoder)
