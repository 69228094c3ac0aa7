"""Running a model one decoder block at a time, with nothing in memory but that block.

Which masks and position embeddings a block is called with differs between architectures, and within one
(sliding windows, layers without rope). So nothing here knows them: the decoder runs once with stubs in
place of its blocks, and the stubs keep what they were called with.

Dimension letters: B sequences, S positions, D width of the hidden state, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from fewbits.errors import CalibrationError
from fewbits.language_model.predictions import Decoded
from fewbits.language_model.skeleton import Skeleton, read_parameter

# How decoders hand the cache to their blocks.
_CACHE = "past_key_values"

Call = tuple[tuple[Any, ...], dict[str, Any]]


class BlockwiseModel:
    """The parts of a decoder, each run by itself. Hidden states are float32 [B, S, D].

    Attributes:
        skeleton: the model that is run.
        blocks: its decoder blocks, without weights.
        names: name of each block in the model, e.g. ``model.layers.0``.
    """

    def __init__(self, skeleton: Skeleton) -> None:
        self.skeleton = skeleton
        self._decoder: Any = skeleton.model.get_decoder()
        layers = getattr(self._decoder, "layers", None)
        if not isinstance(layers, nn.ModuleList) or len(layers) == 0:
            raise CalibrationError(
                "can't find the decoder blocks of this model",
                found=type(skeleton.model).__name__,
                allowed="models with a list of blocks named layers",
            )
        self.blocks: list[nn.Module] = list(layers)
        prefix = next(n for n, m in skeleton.model.named_modules() if m is layers)
        self.names = [f"{prefix}.{i}" for i in range(len(self.blocks))]
        self._calls: dict[tuple[int, int], list[Call]] = {}

    def embed(self, ids: Tensor) -> Tensor:
        """What the first block sees, [B, S, D], of token ids int64 [B, S]; the embedding must be filled."""
        with torch.no_grad(), self._stubs() as stubs:
            stubs[0].stop = True
            with suppress(_Stopped):
                self._decoder(input_ids=ids, use_cache=False)
        hidden: Tensor = stubs[0].hidden
        return hidden

    @contextmanager
    def embedding(self) -> Iterator[Tensor]:
        """The input embedding, filled for a while: float32 [V, D]."""
        module = self.skeleton.model.get_input_embeddings()
        self.skeleton.fill(module, self.skeleton.embedding.removesuffix(".weight"), torch.float32)
        try:
            yield module.weight
        finally:
            self.skeleton.empty(module)

    @contextmanager
    def block(self, index: int) -> Iterator[nn.Module]:
        """A block, filled for a while."""
        module = self.blocks[index]
        self.skeleton.fill(module, self.names[index], torch.float32)
        try:
            yield module
        finally:
            self.skeleton.empty(module)

    @property
    def config(self) -> Any:
        """Config of the decoder, as transformers has it."""
        return self._decoder.config

    def run(self, index: int, hidden: Tensor, cache: Any = None) -> Tensor:
        """The output of a filled block, with an empty cache of transformers for keys and values if one is given."""
        args, kwargs = self._call(hidden)[index]
        if cache is not None and _CACHE in kwargs:
            kwargs = {**kwargs, _CACHE: cache}
        output = self.blocks[index](hidden, *args, **kwargs)
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result

    @contextmanager
    def final_norm(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """What the decoder does to the last block's output, filled for a while; differentiable."""
        outside = {
            name: module
            for name, module in self._decoder.named_children()
            if module is not self._decoder.layers and module is not self._decoder.get_input_embeddings()
        }
        prefix = self.names[0].rsplit(".", 2)[0]

        def norm(hidden: Tensor) -> Tensor:
            with self._stubs() as stubs:
                stubs[-1].replacement = hidden
                output = self._decoder(inputs_embeds=torch.zeros_like(hidden), use_cache=False)
                result: Tensor = output.last_hidden_state
            return result

        for name, module in outside.items():
            self.skeleton.fill(module, f"{prefix}.{name}", torch.float32)
        try:
            yield norm
        finally:
            for module in outside.values():
                self.skeleton.empty(module)

    def head_weight(self) -> Tensor:
        """The matrix that gives the logits, float32 [V, D]."""
        return read_parameter(self.skeleton.tensors[self.skeleton.head], torch.float32)

    def head_bias(self) -> Tensor | None:
        """Its bias, float32 [V], if it has one."""
        tensor = self.skeleton.tensors.get(self.skeleton.head.removesuffix("weight") + "bias")
        return None if tensor is None else read_parameter(tensor, torch.float32).reshape(-1)

    def logits_of(self, products: Tensor) -> Tensor:
        """Logits of the products with the head's rows [1, S, V]: scaled or capped as the model does."""
        model, decoder_name = self.skeleton.model, self.skeleton.model.base_model_prefix
        head_name = next(n for n, m in model.named_children() if m is model.get_output_embeddings())
        decoder, head = getattr(model, decoder_name), getattr(model, head_name)
        try:
            setattr(model, decoder_name, Decoded(products))
            setattr(model, head_name, nn.Identity())
            ids = torch.zeros(products.shape[:2], dtype=torch.int64)
            logits: Tensor = model(input_ids=ids, use_cache=False).logits
        finally:
            setattr(model, decoder_name, decoder)
            setattr(model, head_name, head)
        return logits

    def _call(self, hidden: Tensor) -> list[Call]:
        """How each block is called for hidden states of this shape."""
        shape = (hidden.shape[0], hidden.shape[1])
        if shape not in self._calls:
            with torch.no_grad(), self._stubs() as stubs:
                stubs[-1].stop = True
                with suppress(_Stopped):
                    self._decoder(inputs_embeds=torch.zeros_like(hidden), use_cache=False)
            self._calls[shape] = [stub.call for stub in stubs]
        return self._calls[shape]

    @contextmanager
    def _stubs(self) -> Iterator[list[_Stub]]:
        layers = self._decoder.layers
        stubs = [_Stub(block) for block in self.blocks]
        self._decoder.layers = nn.ModuleList(stubs)
        try:
            yield stubs
        finally:
            self._decoder.layers = layers


class _Stopped(Exception):  # noqa: N818 -- no error: what comes after isn't needed
    """The decoder has run as far as was asked."""


class _Stub(nn.Module):
    """Stands where a block was and remembers the call; passes its input on, or `replacement`, or stops."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "_block", block)  # not a submodule: its parameters are not ours
        self.replacement: Tensor | None = None
        self.stop = False
        self.hidden: Any = None
        self.call: Call = ((), {})

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "_block"), name)  # attention_type and the like

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The hidden state, unchanged."""
        self.hidden, self.call = hidden, (args, kwargs)
        if self.stop:
            raise _Stopped
        return hidden if self.replacement is None else self.replacement
