"""Let a model continue a prompt: to see that a quantized file still speaks.

The model is run by transformers in float32, so this shows what a file says, not how fast its runtime is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbits.errors import EvaluationError
from fewbits.evaluation.memory import available_memory, require_memory
from fewbits.language_model.packages import require_models_extra
from fewbits.language_model.threads import torch_threads

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from fewbits.evaluation.language_model import Activations, LanguageModel
    from fewbits.language_model.text_tokenizer import TextTokenizer

# Tokens of the prompt that are decoded with the answer, so that its first word keeps its space.
_OVERLAP = 8
# What an incomplete UTF-8 sequence decodes to.
_INCOMPLETE = "\ufffd"


@dataclass(frozen=True)
class Generation:
    """What a model wrote.

    Attributes:
        text: the continuation, without the prompt.
        tokens: tokens of it, the one that ended it not counted.
        prompt_tokens: tokens read before, chat markup included.
        tokens_per_second: speed after the first token; 0 for fewer than two.
        seconds: wall time after loading.
        stopped: ``end`` of the model's answer, ``length`` asked for, or the model's ``context`` is full.
        path: the model.
        activations: ``runtime`` (rounded as llama.cpp does) or ``float``.
    """

    text: str
    tokens: int
    prompt_tokens: int
    tokens_per_second: float
    seconds: float
    stopped: str
    path: str
    activations: str


def generate(
    path: str | Path,
    prompt: str,
    n: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    chat: bool = False,
    threads: int | None = None,
    activations: Activations = "runtime",
    on_text: Callable[[str], None] | None = None,
) -> Generation:
    """Continue a prompt.

    Args:
        path: GGUF file, Hugging Face directory or hub id.
        prompt: raw text; names of special tokens in it count as those tokens.
        n: tokens at most.
        temperature: 0 takes the most likely token; else one is drawn from softmax(logits / temperature).
        seed: of the drawing.
        chat: put the prompt as a user's message into the model's chat template.
        threads: CPU threads; None for PyTorch's choice.
        activations: see `fewbits.evaluation.comparison.evaluate`.
        on_text: called with each new piece of text.

    Raises:
        EvaluationError: the model or the prompt can't be used, or memory is short.
        CheckpointError: the model can't be read.
        MissingExtraError: torch or transformers isn't installed.
    """
    if n < 1:
        raise EvaluationError("there must be something to write", found=f"{n} tokens", allowed="1 or more")
    if not isfinite(temperature) or temperature < 0:
        raise EvaluationError("the temperature is out of range", found=temperature, allowed="0 or more")
    require_models_extra("generating text")
    from fewbits.checkpoint.source import open_checkpoint

    checkpoint = open_checkpoint(path)
    require_memory([checkpoint], available_memory())
    from fewbits.evaluation.language_model import load_language_model  # torch: seconds, and only now

    with torch_threads(threads):
        model = load_language_model(checkpoint, activations)
        read = _prompt_tokens(model.tokenizer, prompt, chat)
        limit = inf if model.context_limit is None else model.context_limit
        if len(read) >= limit:
            raise EvaluationError(
                "the prompt is too long", found=f"{len(read)} tokens", allowed=f"fewer than {limit}"
            )
        return _write(model, str(path), read, min(n, limit - len(read)), n, temperature, seed, on_text)


def _prompt_tokens(tokenizer: TextTokenizer, prompt: str, chat: bool) -> list[int]:
    text = tokenizer.chat_prompt(prompt) if chat else prompt
    ids = tokenizer.encode(text, markup=True)
    # Chat templates usually write the beginning-of-text token themselves.
    if tokenizer.add_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
        ids.insert(0, tokenizer.bos_id)
    if not ids:
        raise EvaluationError("the prompt is empty", action="Give the model something to continue")
    return ids


def _write(
    model: LanguageModel,
    path: str,
    prompt: list[int],
    room: float,
    asked: int,
    temperature: float,
    seed: int,
    on_text: Callable[[str], None] | None,
) -> Generation:
    import torch

    started = time.monotonic()
    first = started
    stream = _TextStream(model.tokenizer, prompt, on_text)
    stopped = "length" if room == asked else "context"
    for token in _sampled(model, prompt, temperature, torch.Generator().manual_seed(seed)):
        if token in model.tokenizer.eos_ids:
            stopped = "end"
            break
        stream.add(token)
        if len(stream.ids) == 1:
            first = time.monotonic()
        if len(stream.ids) >= room:
            break
    ended = time.monotonic()
    text = stream.finish()
    count = len(stream.ids)
    return Generation(
        text=text,
        tokens=count,
        prompt_tokens=len(prompt),
        tokens_per_second=(count - 1) / (ended - first) if count > 1 else 0.0,
        seconds=ended - started,
        stopped=stopped,
        path=path,
        activations=model.activations,
    )


def _sampled(
    model: LanguageModel, prompt: list[int], temperature: float, generator: Generator
) -> Iterator[int]:
    """Tokens without end, each drawn from the logits after all tokens before it."""
    cache: Any = None
    tokens = prompt
    while True:
        logits, cache = model.forward(tokens, cache, 1)
        token = _draw(logits[0], temperature, generator)
        yield token
        tokens = [token]


def _draw(logits: Tensor, temperature: float, generator: Generator) -> int:
    """One token from logits float32 [V]."""
    if not temperature:
        return int(logits.argmax())
    # Shifted first: a tiny temperature then gives -inf for all but the best, never NaN.
    weights = ((logits.double() - logits.max()) / temperature).exp()
    return int(weights.multinomial(1, generator=generator))


class _TextStream:
    """Collects tokens and gives out their text as soon as its characters are whole."""

    def __init__(
        self, tokenizer: TextTokenizer, prompt: list[int], on_text: Callable[[str], None] | None
    ) -> None:
        self.ids: list[int] = []
        self._tokenizer = tokenizer
        self._before = prompt[-_OVERLAP:]
        self._skip = len(tokenizer.decode(self._before))
        self._on_text = on_text
        self._given = 0

    def add(self, token: int) -> None:
        self.ids.append(token)
        text = self._text()
        if not text.endswith(_INCOMPLETE):
            self._give(text)

    def finish(self) -> str:
        """All of the text."""
        text = self._text()
        self._give(text)
        return text

    def _text(self) -> str:
        return self._tokenizer.decode(self._before + self.ids)[self._skip :]

    def _give(self, text: str) -> None:
        if self._on_text is not None and len(text) > self._given:
            self._on_text(text[self._given :])
            self._given = len(text)
