"""Let a model continue a prompt: GGUF files in the engine where it knows them, all else by transformers in float32."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

import numpy as np

from fewbits.engine.answer import Generation
from fewbits.engine.sampling import Sampling, SamplingOptions
from fewbits.errors import EngineError, EvaluationError

if TYPE_CHECKING:
    from fewbits._native import Sampler
    from fewbits.checkpoint.checkpoint import Checkpoint
    from fewbits.engine.model import Model
    from fewbits.evaluation.language_model import Activations, LanguageModel
    from fewbits.language_model.text_tokenizer import TextTokenizer

Runtime = Literal["auto", "engine", "transformers"]

# Tokens of the prompt that are decoded with the answer, so that its first word keeps its space.
_OVERLAP = 8
# What an incomplete UTF-8 sequence decodes to.
_INCOMPLETE = "\ufffd"


def generate(
    path: str | Path,
    prompt: str,
    n: int = 64,
    chat: bool = False,
    threads: int | None = None,
    activations: Activations = "runtime",
    on_text: Callable[[str], None] | None = None,
    runtime: Runtime = "auto",
    stop: str | Sequence[str] = (),
    speculate: bool = False,
    **sampling: Unpack[SamplingOptions],
) -> Generation:
    """Continue a prompt.

    Args:
        path: GGUF file, Hugging Face directory or hub id.
        prompt: raw text; names of special tokens in it count as those tokens.
        n: tokens at most.
        chat: put the prompt as a user's message into the model's chat template.
        threads: CPU threads; None for all cores.
        activations: see `fewbits.evaluation.comparison.evaluate`; the engine computes ``runtime`` only.
        on_text: called with each new piece of text.
        runtime: ``engine``, ``transformers``, or ``auto`` for the engine where it knows the file.
        stop: strings before which the text ends; in the engine only.
        speculate: guess tokens by prompt lookup, with the same result; in the engine only.
        sampling: fields of `fewbits.engine.sampling.Sampling`; the default takes the most likely token always.

    Raises:
        EngineError: an option is out of range, or the engine can't run the file and was asked for.
        EvaluationError: the model or the prompt can't be used, or memory is short.
        CheckpointError: the model can't be read.
        MissingExtraError: torch or transformers isn't installed, and the engine doesn't know the model.
    """
    options = Sampling(**sampling)
    if n < 1:
        raise EvaluationError("there must be something to write", found=f"{n} tokens", allowed="1 or more")
    if runtime not in ("auto", "engine", "transformers"):
        raise EvaluationError("unknown runtime", found=repr(runtime), allowed="auto, engine, transformers")
    if threads is not None and threads < 1:
        raise EvaluationError("there must be a thread to run on", found=threads, allowed="1 or more")
    from fewbits.checkpoint.source import open_checkpoint

    checkpoint = open_checkpoint(path)
    model = None if runtime == "transformers" else _in_engine(checkpoint, runtime, activations, threads)
    if model is None:
        if stop or speculate:
            raise EvaluationError(
                "stop strings and speculation need the engine",
                found=f"a {checkpoint.container} model that transformers runs",
                action="Leave them out, or quantize the model to GGUF",
            )
        return _by_transformers(
            checkpoint, str(path), prompt, n, options, chat, threads, activations, on_text
        )
    answer = model.stream(prompt, n, stop=stop, chat=chat, speculate=speculate, **sampling)
    for piece in answer:
        if on_text is not None:
            on_text(piece)
    return answer.generation


def _in_engine(
    checkpoint: Checkpoint, runtime: Runtime, activations: Activations, threads: int | None
) -> Model | None:
    """The model in the engine; None if that isn't for it."""
    if checkpoint.container != "gguf" or activations == "float":
        if runtime == "engine":
            raise EngineError(
                "the engine can't run this as asked",
                found="activations float" if checkpoint.container == "gguf" else checkpoint.container,
                allowed="GGUF files, activations runtime",
                action="Leave out --runtime engine",
            )
        return None
    from fewbits.engine.model import load

    try:
        return load(checkpoint.path, threads=threads)
    except EngineError:
        if runtime == "engine":
            raise
        return None


def _by_transformers(
    checkpoint: Checkpoint,
    path: str,
    prompt: str,
    n: int,
    options: Sampling,
    chat: bool,
    threads: int | None,
    activations: Activations,
    on_text: Callable[[str], None] | None,
) -> Generation:
    from fewbits.evaluation.memory import available_memory, require_memory
    from fewbits.language_model.packages import require_models_extra
    from fewbits.language_model.threads import torch_threads

    require_models_extra("generating text")
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
        return _write(model, path, read, min(n, limit - len(read)), n, options, on_text)


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
    options: Sampling,
    on_text: Callable[[str], None] | None,
) -> Generation:
    started = time.monotonic()
    first = started
    stream = _TextStream(model.tokenizer, prompt, on_text)
    stopped = "length" if room == asked else "context"
    for token in _sampled(model, prompt, options.sampler()):
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
        runtime="transformers",
        seconds_to_first_token=first - started,
        ids=tuple(stream.ids),
    )


def _sampled(model: LanguageModel, prompt: list[int], sampler: Sampler) -> Iterator[int]:
    """Tokens without end, each drawn from the logits after all tokens before it."""
    cache: Any = None
    text = list(prompt)
    tokens = prompt
    while True:
        logits, cache = model.forward(tokens, cache, 1)
        token = sampler.choose(logits[0].numpy(), np.array(text, np.int32))
        yield token
        text.append(token)
        tokens = [token]


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
