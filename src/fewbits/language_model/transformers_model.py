"""Models as transformers builds them, whole in float32 from a directory or from lazily read tensors."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor

from fewbits.architectures.interpreter import HEAD, to_hugging_face
from fewbits.checkpoint.checkpoint import Checkpoint, LazyTensor
from fewbits.errors import EvaluationError


def model_of(checkpoint: Checkpoint) -> Any:
    """The model of a checkpoint of either kind, float32.

    Raises:
        EvaluationError: transformers can't build it, or weights are missing.
        ArchitectureError: a GGUF file of an architecture without transformers counterpart.
    """
    if checkpoint.container != "gguf":
        return model_from_directory(checkpoint)
    config, tensors = to_hugging_face(checkpoint)
    return model_from_tensors(checkpoint, dict(config), tensors)


def model_from_directory(checkpoint: Checkpoint) -> Any:
    """The model of a Hugging Face directory, float32.

    Raises:
        EvaluationError: transformers can't build it, or the directory lacks some of its weights.
    """
    with refusals(checkpoint), quiet():
        config = transformers.AutoConfig.from_pretrained(
            checkpoint.path, local_files_only=True, trust_remote_code=False
        )
        if checkpoint.container != "safetensors" or getattr(config, "quantization_config", None) is not None:
            # Packed or FP8: the checkpoint has applied the scales; transformers would ask for a GPU's kernels.
            return model_from_tensors(checkpoint, dict(checkpoint.config), checkpoint.tensors)
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            checkpoint.path,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **implementations(config),
        )
    _require_whole(checkpoint, info)
    return model.eval()


def model_from_tensors(
    checkpoint: Checkpoint, config: dict[str, Any], tensors: Mapping[str, LazyTensor]
) -> Any:
    """A model whose weights are read tensor by tensor, float32; `tensors` by the live model's names.

    Raises:
        EvaluationError: transformers can't build it, or weights are missing.
    """
    lock = threading.Lock()
    if config.get("tie_word_embeddings"):  # the head is the embedding; don't read it twice
        tensors = {name: tensor for name, tensor in tensors.items() if name != HEAD[0]}
    with refusals(checkpoint), quiet():
        built = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
        model_class = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(built)]
        model, info = model_class.from_pretrained(
            None,
            config=built,
            state_dict={name: _Parameter(tensor, lock) for name, tensor in tensors.items()},
            dtype=torch.float32,
            output_loading_info=True,
            **implementations(built),
        )
    _require_whole(checkpoint, info)
    return model.eval()


class _Parameter:
    """A tensor that is read when transformers slices it, as it does with those of safetensors files."""

    def __init__(self, tensor: LazyTensor, lock: threading.Lock) -> None:
        self._tensor = tensor
        self._lock = lock

    def __getitem__(self, index: Any) -> Tensor:
        with (
            self._lock
        ):  # transformers loads from several threads; one dequantization at a time bounds memory
            numbers = self._tensor.read()
        return torch.from_numpy(numbers)[index]


def implementations(config: Any) -> dict[str, str]:
    """Plain implementations whose matrix products go through `linear`, where activations are rounded.

    Attention with soft-capped scores (Gemma 2) is only computed right by transformers' eager form.
    """
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    return {"experts_implementation": "eager", **({"attn_implementation": "eager"} if capped else {})}


def _require_whole(checkpoint: Checkpoint, info: Mapping[str, Any]) -> None:
    """Refuse a model with missing weights, which transformers fills with random numbers."""
    missing = sorted(str(name) for name in info["missing_keys"])
    mismatched = sorted(str(entry[0]) for entry in info["mismatched_keys"])
    if missing or mismatched:
        what = "lacks weights" if missing else "has weights of another shape than its configuration says"
        raise EvaluationError(
            f"{checkpoint.path} {what}",
            found=", ".join((missing or mismatched)[:5]),
            action="Download or convert the model again",
        )


@contextmanager
def refusals(checkpoint: Checkpoint) -> Iterator[None]:
    """Turn what transformers complains about into an error of ours."""
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise EvaluationError(
            f"transformers can't load {checkpoint.path}",
            found=lines[0],
            action="Check the model's files; a newer transformers may know the architecture",
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and advice from transformers while a model loads."""
    log = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


def storage_address(tensor: Tensor) -> int:
    """What all views of one parameter have in common."""
    return tensor.untyped_storage().data_ptr()
