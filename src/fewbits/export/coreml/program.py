"""The model as a torch program with a key-value cache in its buffers, in the form that Core ML has for such models.

    inputIds    int32   [1, Q]           the next Q tokens
    causalMask  float16 [1, 1, Q, E]     what is added to attention's scores; E: the positions filled after this call
    logits      float16 [1, Q, V]
    keyCache, valueCache  float16 [blocks, key-value heads, C, head]   states; C: the context

The names are those of the stateful language models that Apple has published for Core ML, and that swift-transformers
runs. Positions follow from the mask's shape: this call's tokens are at E - Q … E - 1.

The rotary embedding's cosines and sines are tables of the C positions: an angle of 2000 has no bits left for its
fraction in float16.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from fewbits.errors import ArchitectureError, ExportError

STATES = ("keyCache", "valueCache")
MASKED = -3e4  # added to scores of positions that aren't seen; float16 holds it twice
# Tokens of the comparison with transformers' own pass, and of those how many go in first, at once.
_CHECKED, _FIRST = 12, 7
# What may lie between the two, against the logits' standard deviation: the cache holds float16.
_TOLERANCE = 0.02


class _BufferCache(Cache):  # type: ignore[misc]
    """transformers' cache interface on two buffers."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__(layers=[])
        self._keys, self._values = keys, values
        self.start: Any = 0
        self.stop: Any = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Write the new positions [1, heads, Q, D] of a block, give all so far [1, heads, E, D]."""
        found = []
        for buffer, new in ((self._keys, key_states), (self._values, value_states)):
            buffer[layer_idx : layer_idx + 1, :, self.start : self.stop, :] = new.to(buffer.dtype)
            found.append(buffer[layer_idx : layer_idx + 1, :, : self.stop, :].to(new.dtype))
        return found[0], found[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions filled before this call."""
        del layer_idx
        return self.start  # type: ignore[no-any-return]


class _RotaryTable(nn.Module):
    """Cosines and sines of all positions, computed once by the model's own module.

    Raises:
        ArchitectureError: they depend on how long the text is, or on the layer.
    """

    def __init__(self, rotary: nn.Module, context: int) -> None:
        super().__init__()
        like = torch.zeros(1, 1, 1)
        positions = torch.arange(context)[None]
        try:
            cosines, sines = rotary(like, positions)
            short = rotary(like, positions[:, :2])
        except TypeError as error:  # one for each kind of layer
            raise _other_positions(rotary) from error
        if not torch.equal(short[0], cosines[:, :2]):
            raise _other_positions(rotary)
        self.register_buffer("cosines", cosines[0], persistent=False)
        self.register_buffer("sines", sines[0], persistent=False)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Those of int [1, Q] positions: [1, Q, D] each."""
        del x
        return self.cosines[position_ids], self.sines[position_ids]  # type: ignore[index]


def _other_positions(module: object) -> ArchitectureError:
    return ArchitectureError(
        "the program for Core ML has one table of positions, for any text and all layers",
        found=f"positions by {type(module).__name__}", action="Choose another container, such as gguf",
    )  # fmt: skip


class StatefulProgram(nn.Module):
    """A causal language model of transformers and its cache.

    Raises:
        ArchitectureError: its positions aren't encoded by one rotary embedding.
    """

    def __init__(self, model: Any, context: int) -> None:
        super().__init__()
        config = model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.context = context
        self.shape = (config.num_hidden_layers, heads, context, width)
        for name in STATES:
            self.register_buffer(name, torch.zeros(self.shape, dtype=torch.float16))
        self.model = model
        backbone = getattr(model, "model", model)
        if not hasattr(backbone, "rotary_emb"):
            raise _other_positions(backbone)
        backbone.rotary_emb = _RotaryTable(backbone.rotary_emb, context)
        self._cache = _BufferCache(self.keyCache, self.valueCache)  # type: ignore[arg-type]

    def forward(self, input_ids: Tensor, causal_mask: Tensor) -> Tensor:
        """Logits: int [1, Q] tokens and a mask [1, 1, Q, E] to logits float32 [1, Q, V]."""
        stop = causal_mask.shape[-1]
        start = stop - input_ids.shape[-1]
        self._cache.start, self._cache.stop = start, stop
        positions = torch.arange(start, stop)[None]
        answer = self.model(
            input_ids=input_ids,
            attention_mask=causal_mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        return answer.logits  # type: ignore[no-any-return]

    def reset(self) -> None:
        """Empty the cache."""
        for name in STATES:
            getattr(self, name).zero_()


def mask_of(start: int, stop: int) -> Tensor:
    """The causal mask of tokens start … stop, float32 [1, 1, stop - start, stop]."""
    seen = torch.arange(stop)[None] <= torch.arange(start, stop)[:, None]
    return torch.where(seen, 0.0, MASKED)[None, None]


def run_in_steps(program: nn.Module, tokens: list[int], first: int) -> Tensor:
    """Logits [T, V] of a text: `first` tokens at once, then one by one, through the cache."""
    found = []
    with torch.no_grad():
        for start, stop in [(0, first), *((i, i + 1) for i in range(first, len(tokens)))]:
            found.append(program(torch.tensor([tokens[start:stop]]), mask_of(start, stop))[0])
    return torch.cat(found)


def require_equal(program: nn.Module, expected: Tensor, tokens: list[int]) -> None:
    """Refuse a program that computes something else than the model that it was made from.

    Args:
        program: the traced one.
        expected: the model's own logits [T, V] of the tokens.
        tokens: T of them.

    Raises:
        ExportError: the two differ by more than the cache's rounding.
    """
    found = run_in_steps(program, tokens, _FIRST)
    apart = float((found - expected).abs().max() / expected.std())
    if not apart <= _TOLERANCE:
        raise ExportError(
            "the program for Core ML computes other logits than transformers' model",
            found=f"{apart:.3g} standard deviations apart", allowed=_TOLERANCE,
            action="Choose another container; please report the model's architecture",
        )  # fmt: skip


def logits_of(model: Any, tokens: list[int]) -> Tensor:
    """What transformers' own pass computes for T tokens: [T, V]."""
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0]  # type: ignore[no-any-return]


def check_tokens(vocabulary: int) -> list[int]:
    """Tokens for `require_equal`, spread over the vocabulary."""
    return [(7919 * (i + 1)) % vocabulary for i in range(_CHECKED)]
