"""A model without weights: what transformers builds, parameters on the meta device, buffers real.

Weights come later and block by block, so that a model never has to fit in memory whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from fewbits.architectures.interpreter import HEAD, parameters_of_directory, to_hugging_face
from fewbits.checkpoint.checkpoint import Checkpoint, LazyTensor
from fewbits.errors import EvaluationError
from fewbits.language_model.transformers_model import implementations, quiet, refusals

# Rows that are read and converted at once: 16 MB of float32.
_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class Skeleton:
    """A causal language model whose parameters can be filled and emptied.

    Attributes:
        model: the transformers model.
        tensors: what its parameters hold, by the live model's parameter names. Without the head if it's tied.
        embedding: name of the input embedding.
        head: name of the matrix that gives the logits; the embedding's name if it's tied.
    """

    model: Any
    tensors: Mapping[str, LazyTensor]
    embedding: str
    head: str

    def fill(self, module: nn.Module, prefix: str, dtype: torch.dtype = torch.bfloat16) -> None:
        """Read the parameters of a module, named `prefix` in the model; none of them requires a gradient."""
        for name, parameter in list(module.named_parameters()):
            if parameter.is_meta:
                tensor = self.tensors[f"{prefix}.{name}" if prefix else name]
                _replace(module, name, read_parameter(tensor, dtype))

    @staticmethod
    def empty(module: nn.Module) -> None:
        """Let go of the parameters of a module."""
        for name, parameter in list(module.named_parameters()):
            _replace(module, name, torch.empty_like(parameter, device="meta"))


def read_parameter(tensor: LazyTensor, dtype: torch.dtype) -> Tensor:
    """A whole tensor in another dtype, converted piece by piece."""
    result = torch.empty(tensor.matrix, dtype=dtype)
    start = 0
    for rows in tensor.chunks(_ELEMENTS):
        result[start : start + len(rows)] = torch.from_numpy(rows)
        start += len(rows)
    return result.reshape(tensor.shape)


def _replace(module: nn.Module, name: str, value: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(path), leaf, nn.Parameter(value, requires_grad=False))


def build_skeleton(checkpoint: Checkpoint) -> Skeleton:
    """The model of a Hugging Face directory or GGUF file; reads nothing but shapes.

    Raises:
        EvaluationError: transformers can't build it, or tensors are missing or of another shape.
        ArchitectureError: a GGUF file of an architecture without transformers counterpart.
    """
    if checkpoint.container == "gguf":
        config, tensors = to_hugging_face(checkpoint)
        with refusals(checkpoint), quiet():
            built = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
    else:
        with refusals(checkpoint), quiet():
            built = transformers.AutoConfig.from_pretrained(
                checkpoint.path, local_files_only=True, trust_remote_code=False
            ).get_text_config()
        tensors = dict(checkpoint.tensors)
    if hasattr(built, "quantization_config"):
        del built.quantization_config  # the checkpoint has applied the scales
    with refusals(checkpoint), quiet(), parameters_on_meta():
        model_class = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(built)]
        model = model_class._from_config(built, **implementations(built)).eval()
    embedding = _weight_name(model, model.get_input_embeddings())
    tied = bool(built.tie_word_embeddings)
    head = embedding if tied else _weight_name(model, model.get_output_embeddings())
    names = {name for name, _ in model.named_parameters()} - ({HEAD[0]} if tied else set())
    found = _live_tensors(checkpoint, tensors, names)
    _require_shapes(checkpoint, model, found)
    return Skeleton(model, found, embedding, head)


def _weight_name(model: nn.Module, module: nn.Module) -> str:
    return f"{next(name for name, found in model.named_modules() if found is module)}.weight"


def _live_tensors(
    checkpoint: Checkpoint, tensors: Mapping[str, LazyTensor], names: set[str]
) -> dict[str, LazyTensor]:
    """Tensors by the live model's names; experts that a checkpoint holds one by one are stacked."""
    if checkpoint.container == "gguf":
        found = {name: tensors[name] for name in names if name in tensors}
    else:
        found = parameters_of_directory(checkpoint, names)
    if missing := sorted(names - set(found)):
        raise EvaluationError(
            f"{checkpoint.path} lacks weights",
            found=", ".join(missing[:5]),
            action="Download or convert the model again",
        )
    return found


def _require_shapes(checkpoint: Checkpoint, model: nn.Module, tensors: Mapping[str, LazyTensor]) -> None:
    for name, parameter in model.named_parameters():
        if name in tensors and tuple(parameter.shape) != tuple(tensors[name].shape):
            raise EvaluationError(
                f"{checkpoint.path}: {name} has another shape than its configuration says",
                found=tensors[name].shape,
                allowed=tuple(parameter.shape),
            )


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules made within keep their parameters on the meta device; buffers (rope's frequencies) are real.

    `torch.device("meta")` would take the buffers too, and their values are nowhere else.
    """
    register = nn.Module.register_parameter

    def register_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, parameter)

    nn.Module.register_parameter = register_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
