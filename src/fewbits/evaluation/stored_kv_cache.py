"""The key-value cache that a model's files ask for, as a scheme to simulate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fewbits.checkpoint.checkpoint import Checkpoint, Floats
from fewbits.checkpoint.kv_cache import StoredKvCache, stored_kv_cache
from fewbits.errors import EvaluationError
from fewbits.evaluation.kv_cache import CacheScheme, StoredScales, named_scheme
from fewbits.evaluation.kv_rounding import Static

# Shown in reports.
_NAMES = {"float8_e4m3fn": "fp8_e4m3", "int8": "int8"}


def scheme_of(checkpoint: Checkpoint, model: Any, name: str | None) -> CacheScheme | None:
    """How the keys and values of a model are rounded; None for not at all.

    Args:
        checkpoint: the model's files.
        model: as transformers built it from them.
        name: see `named_scheme`; None for what the files say.

    Raises:
        EvaluationError: no such name, or the files ask for a cache that fewbits doesn't know.
    """
    stored = stored_kv_cache(checkpoint)
    scales = StoredScales(_by_layer(model, stored.keys), _by_layer(model, stored.values))
    if name is not None:
        return named_scheme(name, scales)
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
