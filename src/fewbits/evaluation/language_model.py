"""Models that are run: a Hugging Face directory or a GGUF file, as what transformers builds, in float32.

A GGUF file's weights are dequantized tensor by tensor as transformers asks for them, so loading holds the
float32 model and one tensor besides. With `activations="runtime"` linear maps also round their inputs as the
model's runtime does (see activations.py).

Dimension letters: T tokens of a text, S positions in one pass, V tokens in the vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewbits.architectures.interpreter import parameters_of_directory, to_hugging_face
from fewbits.checkpoint.checkpoint import Checkpoint, LazyTensor
from fewbits.checkpoint.packed import PackedTensor
from fewbits.errors import CheckpointError, EvaluationError
from fewbits.evaluation.activations import (
    FILE_ROUNDING,
    ROUNDING,
    TOKEN_ROUNDING,
    Rounding,
    RuntimeActivations,
)
from fewbits.evaluation.engine_model import LOGITS
from fewbits.evaluation.kv_cache import FLOAT, CacheScheme, StoredScales, named_scheme
from fewbits.evaluation.stored_kv_cache import scheme_of
from fewbits.language_model.text_tokenizer import TextTokenizer, open_tokenizer
from fewbits.language_model.transformers_model import (
    model_from_directory,
    model_from_tensors,
    storage_address,
)

Activations: TypeAlias = Literal["runtime", "float"]
Floats: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LanguageModel:
    """A model ready to run, with its tokenizer.

    Attributes:
        name: file or directory name.
        tokenizer: of the model.
        vocabulary: V, logits per position.
        context_limit: tokens the model is made for, or None where its files don't say.
        activations: ``runtime`` if linear maps round their inputs as the model's runtime does, else ``float``.
        kv_cache: how keys and values are rounded on their way into the cache; None: not at all.
        runtime: always ``transformers``.
    """

    name: str
    tokenizer: TextTokenizer
    vocabulary: int
    context_limit: int | None
    activations: Activations
    _model: Any
    _roundings: Mapping[int, Rounding]
    kv_cache: CacheScheme | None = None
    runtime: str = "transformers"

    def forward(self, tokens: Sequence[int], cache: Any, keep: int) -> tuple[Tensor, Any]:
        """Run tokens that follow those in `cache` (None: from the start).

        Returns:
            The logits of the last `keep` of them, float32 [keep, V], and the cache for what comes next.
        """
        options = {"logits_to_keep": keep} if self._can_keep else {}
        rounding = RuntimeActivations(self._roundings) if self._roundings else nullcontext()
        if cache is None and self.kv_cache is not None:
            cache = self.kv_cache.cache(self._model.config.get_text_config(decoder=True))
        with torch.inference_mode(), rounding:
            output = self._model(
                input_ids=torch.tensor([list(tokens)]), past_key_values=cache, use_cache=True, **options
            )
        return output.logits[0, -keep:].float(), output.past_key_values

    def with_float_activations(self) -> LanguageModel:
        """The same model without the rounding of activations."""
        return replace(self, activations="float", _roundings={})

    def with_kv_cache(self, name: str) -> LanguageModel:
        """The same model with keys and values kept as `named_scheme` says, by the scales of its files.

        Raises:
            EvaluationError: no such name.
        """
        scales = self.kv_cache.scales if self.kv_cache else StoredScales()
        return replace(self, kv_cache=named_scheme(name, scales))

    def with_float_kv_cache(self) -> LanguageModel:
        """The same model with keys and values as they are."""
        return self.with_kv_cache(FLOAT)

    def in_arithmetic(self, dtype: str) -> LanguageModel:
        """This model with parameters and activations in another dtype; changes it in place.

        Neither activations nor keys and values are rounded but to that.

        Tables of positions stay in float32, as transformers has them in a model loaded in that dtype.

        Raises:
            EvaluationError: no such dtype.
        """
        wanted = getattr(torch, dtype, None)
        if not isinstance(wanted, torch.dtype):
            raise EvaluationError(
                "unknown dtype of activations", found=repr(dtype), allowed="as PyTorch has them"
            )
        for parameter in self._model.parameters():
            parameter.data = parameter.data.to(wanted)
        return self.with_float_activations().with_float_kv_cache()

    def cache_bytes(self) -> tuple[float, float]:
        """Bytes that the rounded cache keeps of a token, and what it would in float16.

        Raises:
            EvaluationError: keys and values of this model can't be rounded.
        """
        problem = "no keys and values go into its cache"
        try:
            _, cache = self.forward([0], None, 1)
            sizes = cache.nbytes_per_token
        except (AttributeError, ValueError) as error:  # a kind of cache of the model's own
            sizes, problem = (0.0, 0.0), (str(error).splitlines() or [type(error).__name__])[0]
        if not sizes[1]:
            raise EvaluationError(
                f"a key-value cache can't be simulated for {self.name}",
                found=problem,
                action="Leave out --kv-cache",
            )
        return float(sizes[0]), float(sizes[1])

    @property
    def _can_keep(self) -> bool:
        return "logits_to_keep" in inspect.signature(self._model.forward).parameters

    def logits(self, tokens: Sequence[int], first: int) -> Iterator[Floats]:
        """Logits at positions first … T-1 of a text of its own, in order, as pieces of float32 [S, V].

        Pieces hold at most 128 MB; each pass goes on from the key-value cache of the passes before.
        """
        step = max(1, LOGITS // self.vocabulary)
        if self._model._is_stateful:  # state-space layers continue a cache one token at a time only
            step = len(tokens)
        cache: Any = None
        start = 0
        for position in range(first, len(tokens), step):
            stop = min(position + step, len(tokens))
            logits, cache = self.forward(tokens[start:stop], cache, stop - position)
            start = stop
            yield logits.numpy()


def load_language_model(
    checkpoint: Checkpoint, activations: Activations = "runtime", kv_cache: str | None = FLOAT
) -> LanguageModel:
    """Load a model and its tokenizer.

    `activations` counts for GGUF files, and for directories that say that activations are quantized. `kv_cache` names
    how keys and values are rounded; None: as the directory says.

    Raises:
        EvaluationError: transformers can't build the model, or the file lacks some of its weights.
        ArchitectureError: a GGUF file of an architecture that fewbits has no transformers counterpart for.
    """
    tokenizer = open_tokenizer(checkpoint)
    table = TOKEN_ROUNDING
    if checkpoint.container == "gguf":
        config, tensors = to_hugging_face(checkpoint)
        model = model_from_tensors(checkpoint, dict(config), tensors)
        table = ROUNDING
    else:
        model = model_from_directory(checkpoint)
        tensors = parameters_of_directory(checkpoint, [name for name, _ in model.named_parameters()])
    rounded = tensors if activations == "runtime" else {}
    roundings = _by_address(model, {name: _rounding(tensor, table) for name, tensor in rounded.items()})
    scheme = scheme_of(checkpoint, model, tensors, kv_cache)
    return _language_model(checkpoint, model, tokenizer, roundings, scheme)


def language_model_of(
    checkpoint: Checkpoint, tokenizer: TextTokenizer, formats: Mapping[str, str]
) -> LanguageModel:
    """A model of a directory's config and tensors alone, with another's tokenizer.

    Args:
        checkpoint: config and tensors.
        tokenizer: the other's.
        formats: that the tensors were quantized in, by name: they say how the runtime rounds the inputs of linear maps.

    Raises:
        EvaluationError: transformers can't build it, or weights are missing.
    """
    model = model_from_tensors(checkpoint, dict(checkpoint.config), checkpoint.tensors)
    roundings = {name: TOKEN_ROUNDING.get(chosen) for name, chosen in formats.items()}
    return _language_model(checkpoint, model, tokenizer, _by_address(model, roundings), None)


def _language_model(
    checkpoint: Checkpoint,
    model: Any,
    tokenizer: TextTokenizer,
    roundings: Mapping[int, Rounding],
    scheme: CacheScheme | None,
) -> LanguageModel:
    text_config = model.config.get_text_config()
    return LanguageModel(
        name=checkpoint.path.name,
        tokenizer=tokenizer,
        vocabulary=text_config.vocab_size,
        context_limit=getattr(text_config, "max_position_embeddings", None),
        activations="runtime" if roundings else "float",
        _model=model,
        _roundings=roundings,
        kv_cache=scheme,
    )


def _by_address(model: Any, roundings: Mapping[str, Rounding | None]) -> dict[int, Rounding]:
    """Roundings of inputs of linear maps, by the address of the storage of the maps' parameters."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and (rounding := roundings.get(name)) is not None:
            found[storage_address(parameter)] = rounding
    return found


def _rounding(tensor: LazyTensor, table: Mapping[str, Rounding]) -> Rounding | None:
    """How the inputs of a weight's map are rounded; None if they aren't.

    Raises:
        CheckpointError: the file lacks the number that it should hold for them.
    """
    if tensor.dtype in table or not isinstance(tensor, PackedTensor) or tensor.dtype not in FILE_ROUNDING:
        return table.get(tensor.dtype)
    part, make = FILE_ROUNDING[tensor.dtype]
    scale = tensor.inputs.get(part, 0.0)
    if not scale > 0:
        raise CheckpointError(
            f"{tensor.name} is {tensor.dtype} and has no usable {part}", found=scale,
            action="Download the model again, or evaluate with --activations float",
        )  # fmt: skip
    return make(scale)
