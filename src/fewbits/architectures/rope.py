"""Rotary position embeddings: what Hugging Face configs say, as GGUF metadata and tensors, and back.

Transformers 5 keeps `rope_parameters` (one dict, or one per kind of layer); older files keep `rope_theta`,
`rope_scaling` and `rope_local_base_freq`. GGUF has keys under `rope.` and tensors of divisors of the
frequencies: `rope_freqs.weight` always, `rope_factors_long/short.weight` by context length.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log, nextafter, pi, sqrt
from typing import Any

import numpy as np

from fewbits.architectures.architecture import Arrays, Config, Feature, refuse
from fewbits.checkpoint.checkpoint import Floats, LazyTensor
from fewbits.errors import ArchitectureError

FREQUENCIES = "rope_freqs.weight"
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
DEFAULT_BASE = 10000.0  # what llama.cpp takes when the file doesn't say
FULL, SLIDING = "full_attention", "sliding_attention"


class _RopeParameters(dict[str, Any]):
    def __missing__(self, key: str) -> Any:
        raise ArchitectureError(f"the rope settings of config.json lack {key}", found=dict(self))


def rope_parameters(config: Config, layers: str = FULL) -> dict[str, Any]:
    """Rope settings of one kind of layer in one spelling, `rope_type` and `rope_theta` always there.

    Args:
        config: the text model's config.
        layers: ``full_attention`` or ``sliding_attention``; the same unless the config distinguishes them.
    """
    given = config.get("rope_parameters") or {}
    if given:
        found = dict(given.get(layers) or {}) if FULL in given or SLIDING in given else dict(given)
    elif layers == SLIDING and "rope_local_base_freq" in config:
        found = {"rope_theta": config["rope_local_base_freq"]}
    else:
        found = dict(config.get("rope_scaling") or {})
    found["rope_type"] = found.get("rope_type") or found.pop("type", None) or "default"
    found["rope_type"] = {"su": "longrope"}.get(found["rope_type"], found["rope_type"])
    if found.get("rope_theta") is None:
        found["rope_theta"] = config.get("rope_theta", DEFAULT_BASE)
    if config.get("original_max_position_embeddings"):
        found["original_max_position_embeddings"] = config["original_max_position_embeddings"]
    found.setdefault("partial_rotary_factor", config.get("partial_rotary_factor") or 1.0)
    return _RopeParameters(found)


def head_dim(config: Config) -> int:
    """Columns of one attention head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def rotary_dim(config: Config) -> int:
    """How many of a head's columns are rotated."""
    return int(head_dim(config) * rope_parameters(config)["partial_rotary_factor"])


def rope(*types: str) -> Feature:
    """One rope for all layers, of the given types: ``default``, ``linear``, ``yarn``, ``llama3``."""

    def write(config: Config) -> dict[str, Any]:
        parameters = rope_parameters(config)
        return {
            "rope.dimension_count": rotary_dim(config),
            "rope.freq_base": float(parameters["rope_theta"]),
            **_scaling(parameters, types),
        }

    return Feature(write=write, tensors=_frequency_divisors, read=_read_rope)


def rope_by_layer(*types: str, sliding_base: float | None = None) -> Feature:
    """Full attention with a rope of the given types, sliding attention with an unscaled one.

    Args:
        types: of the full attention's rope.
        sliding_base: what llama.cpp takes for sliding attention when the file doesn't say it; None: its
            implementation has one base for all, so a model with two is refused.
    """

    def write(config: Config) -> dict[str, Any]:
        full, sliding = rope_parameters(config), rope_parameters(config, SLIDING)
        _scaling(sliding, ("default",))
        keys = {"rope.dimension_count": rotary_dim(config), "rope.freq_base": float(full["rope_theta"])}
        if sliding_base is not None:
            keys["rope.freq_base_swa"] = float(sliding["rope_theta"])
        elif sliding["rope_theta"] != full["rope_theta"]:
            raise refuse("sliding attention has a rope of its own", sliding["rope_theta"], full["rope_theta"])
        return keys | _scaling(full, types)

    def read(values: Mapping[str, Any], tensors: Mapping[str, LazyTensor]) -> dict[str, Any]:
        full = _read_rope(values, tensors)["rope_parameters"]
        base = full["rope_theta"] if sliding_base is None else values.get("rope.freq_base_swa", sliding_base)
        sliding = {"rope_type": "default", "rope_theta": float(base)} | _partial(values)
        return {"rope_parameters": {FULL: full, SLIDING: sliding}}

    return Feature(write=write, read=read)


def _scaling(parameters: Mapping[str, Any], types: tuple[str, ...]) -> dict[str, Any]:
    kind = parameters["rope_type"]
    if kind not in types:
        raise ArchitectureError(
            "llama.cpp can't run this model's rope scaling", found=kind, allowed=", ".join(types)
        )
    if kind not in ("linear", "yarn"):
        return {}
    keys: dict[str, Any] = {"rope.scaling.type": kind, "rope.scaling.factor": float(parameters["factor"])}
    if kind == "yarn":
        keys["rope.scaling.original_context_length"] = int(parameters["original_max_position_embeddings"])
        if (attention := parameters.get("attention_factor")) is not None:
            # llama.cpp multiplies its factor into the one that YaRN recommends
            keys["rope.scaling.attn_factor"] = float(attention) / _yarn_attention(parameters["factor"])
        for name in ("beta_fast", "beta_slow"):
            if parameters.get(name) is not None:
                keys[f"rope.scaling.yarn_{name}"] = float(parameters[name])
    return keys


def _yarn_attention(factor: float) -> float:
    """YaRN's factor on the logits' scale (arXiv 2309.00071, section 3.4)."""
    return 0.1 * log(factor) + 1.0


def _frequency_divisors(config: Config) -> Arrays:
    """Llama 3's rope scaling as divisors of the frequencies, float32 [rotary dimensions / 2].

    Frequencies whose wavelength is short stay, those whose wavelength is long are divided by `factor`, and
    between the two the frequency itself is interpolated.
    """
    parameters = rope_parameters(config)
    if parameters["rope_type"] != "llama3":
        return {}
    factor, original = parameters["factor"], parameters["original_max_position_embeddings"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    dim = rotary_dim(config)
    wavelength = 2 * pi * parameters["rope_theta"] ** (np.arange(0, dim, 2) / dim)
    share = np.clip((original / wavelength - low) / (high - low), 0, 1)  # of the unscaled frequency
    return {FREQUENCIES: (1 / (share + (1 - share) / factor)).astype(np.float32)}


def _read_rope(values: Mapping[str, Any], tensors: Mapping[str, LazyTensor]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": float(values.get("rope.freq_base", DEFAULT_BASE)),
    }
    factor = values.get("rope.scaling.factor") or values.get("rope.scale_linear")
    context = int(values["context_length"])
    if FREQUENCIES in tensors:
        # Any divisors are a longrope whose short and long factors are equal: nothing has to be guessed.
        divisors = _factors(tensors, FREQUENCIES)
        found |= {
            "rope_type": "longrope",
            "short_factor": divisors,
            "long_factor": divisors,
            "attention_factor": 1.0,
            "original_max_position_embeddings": context,
        }
    elif factor and factor != 1.0 and values.get("rope.scaling.type", "linear") != "none":
        found |= {"rope_type": values.get("rope.scaling.type", "linear"), "factor": float(factor)}
        if found["rope_type"] == "yarn":
            original = values.get("rope.scaling.original_context_length", context)
            found["original_max_position_embeddings"] = int(original)
            own = values.get("rope.scaling.attn_factor", 1.0)
            found["attention_factor"] = own * _yarn_attention(factor)
            found["beta_fast"] = values.get("rope.scaling.yarn_beta_fast", 32.0)
            found["beta_slow"] = values.get("rope.scaling.yarn_beta_slow", 1.0)
    return {"rope_parameters": found | _partial(values)}


def _partial(values: Mapping[str, Any]) -> dict[str, float]:
    """The share of each head that is rotated, when it isn't all of it."""
    width = values["attention.key_length"]
    rotated = values.get("rope.dimension_count", width)
    factor = rotated / width
    if int(width * factor) < rotated:  # transformers rounds the product down
        factor = nextafter(factor, 1.0)
    return {} if rotated == width else {"partial_rotary_factor": factor}


def _longrope_write(config: Config) -> dict[str, Any]:
    parameters = rope_parameters(config)
    context = config["max_position_embeddings"]
    original = parameters.get("original_max_position_embeddings") or context
    keys = {
        "rope.dimension_count": rotary_dim(config),
        "rope.freq_base": float(parameters["rope_theta"]),
        "rope.scaling.original_context_length": int(original),
    }
    if parameters["rope_type"] == "default":
        return keys
    attention = parameters.get("attention_factor")
    if attention is None:
        ratio = parameters.get("factor") or context / original
        attention = sqrt(1 + log(ratio) / log(original)) if ratio > 1 else 1.0
    return keys | {"rope.scaling.attn_factor": float(attention)}


def _longrope_tensors(config: Config) -> Arrays:
    parameters = rope_parameters(config)
    if parameters["rope_type"] == "default":
        return {}
    if parameters["rope_type"] not in ("longrope", "yarn"):  # early phi3 configs call it yarn
        raise ArchitectureError(
            "llama.cpp can't run this model's rope scaling",
            found=parameters["rope_type"],
            allowed="default, longrope",
        )
    return {LONG: _floats(parameters["long_factor"]), SHORT: _floats(parameters["short_factor"])}


def _floats(numbers: list[float]) -> Floats:
    return np.asarray(numbers, np.float32)


def _factors(tensors: Mapping[str, LazyTensor], name: str) -> list[float]:
    """A vector of divisors of the frequencies."""
    if name not in tensors:
        raise ArchitectureError("this GGUF file lacks factors of its rope", found=f"no {name}")
    return [float(x) for x in tensors[name].read().reshape(-1)]


def _longrope_read(values: Mapping[str, Any], tensors: Mapping[str, LazyTensor]) -> dict[str, Any]:
    original = int(values.get("rope.scaling.original_context_length", values["context_length"]))
    found: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": float(values.get("rope.freq_base", DEFAULT_BASE)),
    }
    if LONG in tensors or SHORT in tensors:
        found |= {
            "rope_type": "longrope",
            "long_factor": _factors(tensors, LONG),
            "short_factor": _factors(tensors, SHORT),
            "attention_factor": float(values.get("rope.scaling.attn_factor", 1.0)),
            "original_max_position_embeddings": original,
        }
    return {"rope_parameters": found | _partial(values), "original_max_position_embeddings": original}


LONGROPE = Feature(write=_longrope_write, tensors=_longrope_tensors, read=_longrope_read)
