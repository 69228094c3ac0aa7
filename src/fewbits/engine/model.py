"""A GGUF file that is ready to write: `fewbits.load`.

T: tokens of a text, V: vocabulary. Neither PyTorch nor transformers is imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

import numpy as np

from fewbits.engine.answer import Answer, Generation
from fewbits.engine.decoding import Decoding
from fewbits.engine.sampling import Sampling, SamplingOptions
from fewbits.engine.slot import Floats, SequenceEngine, Slot, checked_tokens
from fewbits.engine.text_stream import TextStream
from fewbits.errors import EngineError

if TYPE_CHECKING:
    from fewbits.checkpoint.gguf_tokenizer import GgufTokenizer

# Tokens whose logits are asked for in one step: they lie in memory twice.
_LOGITS = 256


def load(
    path: str | Path,
    threads: int | None = None,
    context: int | None = None,
    kv_cache: Literal["f16", "q8", "q4"] = "f16",
) -> Model:
    """Open a GGUF file in the engine.

    Args:
        path: the file.
        threads: None for all cores that this process may use.
        context: tokens that a text may have; None for what the engine takes for the model.
        kv_cache: how keys and values are kept: in 16, 8 or 4 bits.

    Raises:
        CheckpointError: not a GGUF file that can be read.
        EngineError: the engine doesn't know its architecture or one of its types, or an option is out of range.
    """
    from fewbits.engine.engine import open_engine

    if Path(path).is_dir():
        raise EngineError(
            "the engine runs GGUF files",
            found=f"the directory {path}",
            action="Make one with fewbits quantize",
        )
    return Model(open_engine(path, threads=threads, context=context, kv_cache=kv_cache), str(path))


class Model:
    """A model that continues texts. One text at a time; texts that begin alike share what was computed.

    Attributes:
        engine: what computes.
        path: of the file.
    """

    def __init__(self, engine: SequenceEngine, path: str) -> None:
        self.engine = engine
        self.path = path
        self._slot = Slot(engine)

    @cached_property
    def tokenizer(self) -> GgufTokenizer:
        """The file's tokenizer; built when it is first used.

        Raises:
            ArchitectureError: a kind of tokenizer that fewbits can't build.
            CheckpointError: the file has none, or contradicts itself.
            MissingExtraError: the package `tokenizers` isn't installed.
        """
        from fewbits.checkpoint.gguf_tokenizer import tokenizer_from_metadata

        return tokenizer_from_metadata(self.engine.metadata)

    def generate(
        self,
        prompt: str | Sequence[int],
        max_tokens: int = 256,
        *,
        stop: str | Sequence[str] = (),
        chat: bool = False,
        speculate: bool = False,
        **sampling: Unpack[SamplingOptions],
    ) -> Generation:
        """Continue a prompt.

        Args:
            prompt: text, in which names of special tokens count as those tokens, or token ids, taken as they are.
            max_tokens: tokens at most.
            stop: strings before which the text ends.
            chat: put the prompt as a user's message into the model's chat template.
            speculate: guess tokens by prompt lookup and check several at a time; the output stays the same.
            sampling: fields of `Sampling`; the default takes the most likely token always.

        Raises:
            EngineError: the prompt or an option can't be used.
            EvaluationError: the model has no chat template, or its template refuses the prompt.
        """
        return self.stream(prompt, max_tokens, stop=stop, chat=chat, speculate=speculate, **sampling).finish()

    def stream(
        self,
        prompt: str | Sequence[int],
        max_tokens: int = 256,
        *,
        stop: str | Sequence[str] = (),
        chat: bool = False,
        speculate: bool = False,
        **sampling: Unpack[SamplingOptions],
    ) -> Answer:
        """As `generate`, but an iterator of pieces of text; its `generation` says at any time what has been written."""
        options = Sampling(**sampling)
        if max_tokens < 1:
            raise EngineError(
                "there must be something to write", found=f"{max_tokens} tokens", allowed="1 or more"
            )
        stops = [stop] if isinstance(stop, str) else list(stop)
        if "" in stops:
            raise EngineError("a stop string is empty", allowed="one character or more")
        if isinstance(prompt, str):
            ids = self.encode(self.chat_prompt([{"role": "user", "content": prompt}]) if chat else prompt)
        elif chat:
            raise EngineError(
                "a chat's message must be text", found="token ids", action="Leave out chat=True"
            )
        else:
            ids = list(prompt)
        ids = checked_tokens(self.engine, ids, self.engine.context - 1)
        room = self.engine.context - len(ids)
        return Answer(
            Decoding(self._slot, ids, options, min(max_tokens, room), speculate=speculate),
            TextStream(self.tokenizer.token_bytes, stops),
            self.tokenizer.eos_ids,
            asked=max_tokens,
            room=room,
            prompt_tokens=len(ids),
            path=self.path,
        )

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt; names of special tokens are those tokens, and a text begins as the model wants."""
        return self.tokenizer.encode_prompt(text)

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """A conversation (``role`` and ``content`` of each message) in the model's markup, up to its next answer.

        Raises:
            EvaluationError: the model has no chat template, or its template refuses the messages.
        """
        from fewbits.language_model.text_tokenizer import GgufTokenizer

        return GgufTokenizer(self.engine.metadata, self.tokenizer).chat_prompt(messages)

    def logits(self, ids: Sequence[int]) -> Floats:
        """Logits after every token of a text: float32 [T, V].

        Raises:
            EngineError: no tokens, more than the context has room for, or some that the model doesn't have.
        """
        tokens = checked_tokens(self.engine, ids, self.engine.context)
        result = np.empty((len(tokens), self.engine.vocabulary), np.float32)
        with self._slot.lock:
            self._slot.clear()
            for first in range(0, len(tokens), _LOGITS):
                piece = tokens[first : first + _LOGITS]
                result[first : first + len(piece)] = self._slot.feed(piece, len(piece))
        return result
