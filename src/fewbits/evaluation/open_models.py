"""What runs the models that are compared: the engine where it can, else transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Literal, TypeAlias

from fewbits.checkpoint.checkpoint import Checkpoint
from fewbits.errors import EngineError
from fewbits.evaluation.memory import available_memory, require_memory
from fewbits.language_model.packages import require_models_extra
from fewbits.language_model.threads import torch_threads

if TYPE_CHECKING:
    from fewbits.evaluation.engine_model import EngineModel
    from fewbits.evaluation.language_model import Activations, LanguageModel

    AnyModel: TypeAlias = LanguageModel | EngineModel

Runtime: TypeAlias = Literal["auto", "engine", "transformers"]


@contextmanager
def open_models(
    checkpoints: tuple[Checkpoint, Checkpoint],
    context: int,
    threads: int | None,
    activations: Activations,
    kv_cache: str | None,
    runtime: Runtime,
) -> Iterator[tuple[AnyModel, AnyModel]]:
    """The quantized model and the original, each in the engine or in transformers, whose threads are set meanwhile.

    Raises:
        EngineError: the engine can't run a model, and was asked for.
        EvaluationError: transformers can't build a model, or memory is short.
        MissingExtraError: torch or transformers isn't installed, and the engine doesn't know a model.
    """
    caches = kv_cache, "float"
    found = [
        None
        if runtime == "transformers"
        else _in_engine(checkpoint, context, threads, activations, cache, required=runtime == "engine")
        for checkpoint, cache in zip(checkpoints, caches, strict=True)
    ]
    rest = [checkpoint for checkpoint, model in zip(checkpoints, found, strict=True) if model is None]
    if rest:
        require_models_extra("evaluating a model")
        require_memory(rest, available_memory())
    with torch_threads(threads) if rest else nullcontext():
        model, reference = (
            _by_transformers(checkpoint, activations, cache) if model is None else model
            for checkpoint, model, cache in zip(checkpoints, found, caches, strict=True)
        )
        yield model, reference


def _by_transformers(checkpoint: Checkpoint, activations: Activations, kv_cache: str | None) -> LanguageModel:
    from fewbits.evaluation.language_model import load_language_model  # torch: seconds, and only now

    return load_language_model(checkpoint, activations, kv_cache)


def _in_engine(
    checkpoint: Checkpoint,
    context: int,
    threads: int | None,
    activations: Activations,
    kv_cache: str | None,
    *,
    required: bool,
) -> EngineModel | None:
    """The model in the engine; None if that isn't for it, and `required` is False."""
    if checkpoint.container == "gguf" and activations == "runtime" and kv_cache in (None, "float"):
        from fewbits.evaluation.engine_model import open_engine_model

        try:
            return open_engine_model(checkpoint, context, threads)
        except EngineError:
            if required:
                raise
    elif required:
        raise EngineError(
            "the engine can't run this as asked",
            found=f"{checkpoint.container}, activations {activations}, key-value cache {kv_cache or 'float'}",
            allowed="GGUF files, activations runtime, key-value cache float",
            action="Leave out --runtime engine",
        )
    return None
