"""The key-value cache that a model's files ask for, as a scheme to simulate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewbits.checkpoint.checkpoint import Checkpoint, Floats, LazyTensor
from fewbits.checkpoint.kv_cache import StoredKvCache, stored_kv_cache
from fewbits.checkpoint.views import Permuted
from fewbits.errors import EvaluationError
from fewbits.evaluation.kv_cache import CacheScheme, StoredScales, named_scheme
from fewbits.evaluation.kv_rounding import Reordered, Static

# Shown in reports.
_NAMES = {"float8_e4m3fn": "fp8_e4m3", "int8": "int8"}


def scheme_of(
    checkpoint: Checkpoint, model: Any, tensors: Mapping[str, LazyTensor], name: str | None
) -> CacheScheme | None:
    """How the keys and values of a model are rounded; None for not at all.

    Args:
        checkpoint: the model's files.
        model: as transformers built it from them.
        tensors: its parameters as the files have them.
        name: see `named_scheme`; None for what the files say.

    Raises:
        EvaluationError: no such name, or the files ask for a cache that fewbits doesn't know.
    """
    stored = stored_kv_cache(checkpoint)
    scales = StoredScales(_by_layer(model, stored.keys), _by_layer(model, stored.values))
    if name is not None:
        scheme = named_scheme(name, scales)
        places = _places(tensors) if checkpoint.container == "gguf" else ()
        if scheme is None or not places:
            return scheme
        return replace(scheme, keys=Reordered(scheme.keys, places))
    if not stored.described:
        return None
    if not stored.dtype:
        raise EvaluationError(
            f"{checkpoint.path} asks for a key-value cache that fewbits can't simulate",
            found="kv_cache_scheme in config.json", allowed="8 bits, static, for all heads or each",
            action="Pass --kv-cache float for one that isn't rounded, or the name of another",
        )  # fmt: skip
    rounding = Static(getattr(torch, stored.dtype))
    kind = f"{_NAMES[stored.dtype]}, {_granularity(stored)}"
    return CacheScheme(kind, rounding, rounding, "config.json", scales)


def _places(tensors: Mapping[str, LazyTensor]) -> tuple[int, ...]:
    """Where a GGUF file has the channels of a head of keys, by the model's own order; () where that is the same.

    llama.cpp rotates neighbours where transformers rotates halves, and for such models files have the rows of queries
    and keys in another order, alike in all heads. Blocks of 32 are then made of other channels.
    """
    found = {
        _pattern(tensor.row_index)
        for tensor in tensors.values()
        if isinstance(tensor, Permuted) and len(tensor.shape) == 2
    }
    return found.pop() if len(found) == 1 else ()


def _pattern(rows: npt.NDArray[np.intp]) -> tuple[int, ...]:
    """The shortest order of neighbouring rows that repeats through all of them."""
    for width in range(1, len(rows) + 1):
        if len(rows) % width == 0:
            heads = rows.reshape(-1, width) - width * np.arange(len(rows) // width)[:, None]
            if (heads == heads[0]).all() and np.array_equal(np.sort(heads[0]), np.arange(width)):
                return tuple(heads[0].tolist())
    return ()


def _granularity(stored: StoredKvCache) -> str:
    if not stored.keys:
        return "scales of 1"
    return "a scale per head" if max(s.size for s in stored.keys.values()) > 1 else "a scale per layer"


def _by_layer(model: Any, scales: Mapping[str, Floats]) -> dict[int, Tensor]:
    """Layer -> scale. A scale belongs to the attention that has its name, or whose part has."""
    layers = {
        name: index
        for name, module in model.named_modules()
        if isinstance(index := getattr(module, "layer_idx", None), int)
    }
    found = {}
    for module, scale in scales.items():
        index = layers.get(module, layers.get(module.rpartition(".")[0]))
        if index is not None:
            numbers = torch.from_numpy(scale.reshape(-1).copy())
            found[index] = numbers.reshape(()) if len(numbers) == 1 else numbers.reshape(-1, 1, 1)
    return found
