"""Simulating the key-value cache of a runtime: what attention reads is what the runtime would have kept.

Keys and values are rounded where transformers hands them to the cache, so that attention, whatever the architecture,
sees what it would read back, its own token's included: llama.cpp and vLLM write first and read then. Models with
latent attention hand over the latent and the rotated part, as runtimes cache them. Left out: queries are
rounded to 8 bits by llama.cpp's dot products with quantized keys (as activations are) and by vLLM's FP8 attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from fewbits.errors import EvaluationError
from fewbits.evaluation.kv_rounding import (
    AffineGroups,
    BlockType,
    FloatType,
    HeadRounding,
    Int4PerTokenHead,
    PerTokenHead,
    Rotated,
    Static,
    UnevenBlockType,
)

FLOAT = "float"
_F16_BITS = 16.0
# Of names such as q8_0/q4_0: keys and values.
_BETWEEN = "/"
_UNROTATED = "-unrotated"

_BLOCKS: Mapping[str, HeadRounding] = {
    "q8_0": BlockType("q8_0", 8),
    "q5_1": BlockType("q5_1", 5, affine=True),
    "q5_0": BlockType("q5_0", 5),
    "q4_1": BlockType("q4_1", 4, affine=True),
    "q4_0": BlockType("q4_0", 4),
    "iq4_nl": UnevenBlockType(),
}
_E4M3, _E5M2 = Static(torch.float8_e4m3fn), Static(torch.float8_e5m2)


@dataclass(frozen=True)
class _Kind:
    """How a name rounds keys and values, and how the runtime is told."""

    keys: HeadRounding
    values: HeadRounding
    runtime: str

    @classmethod
    def alike(cls, rounding: HeadRounding, runtime: str) -> _Kind:
        return cls(rounding, rounding, runtime)


_KINDS: Mapping[str, _Kind] = {
    "f16": _Kind.alike(FloatType(torch.float16), "llama.cpp (default)"),
    "bf16": _Kind.alike(FloatType(torch.bfloat16), "vLLM (default of bfloat16 models)"),
    **{
        name: _Kind(Rotated(rounding, whole=True), Rotated(rounding, whole=False), "llama.cpp")
        for name, rounding in _BLOCKS.items()
    },
    **{
        f"{name}{_UNROTATED}": _Kind.alike(rounding, "llama.cpp, LLAMA_ATTN_ROT_DISABLE=1")
        for name, rounding in _BLOCKS.items()
    },
    "fp8": _Kind.alike(_E4M3, "vLLM"),
    "fp8_e4m3": _Kind.alike(_E4M3, "vLLM"),
    "fp8_e5m2": _Kind.alike(_E5M2, "vLLM"),
    "fp8_e4m3_truncated": _Kind.alike(Static(torch.float8_e4m3fn, truncated=True), "vLLM on x86 CPUs"),
    "fp8_per_token_head": _Kind.alike(PerTokenHead(torch.float8_e4m3fn), "vLLM"),
    "int8_per_token_head": _Kind.alike(PerTokenHead(torch.int8), "vLLM"),
    "int4_per_token_head": _Kind.alike(Int4PerTokenHead(), "vLLM"),
    "mlx8_g64": _Kind.alike(AffineGroups(8), "mlx-lm, --kv-bits 8"),
    "mlx4_g64": _Kind.alike(AffineGroups(4), "mlx-lm, --kv-bits 4"),
}


def scheme_names() -> list[str]:
    """All names but those of pairs."""
    return [FLOAT, *_KINDS]


@dataclass(frozen=True)
class StoredScales:
    """Scales that a model's files have for the keys and the values of its layers.

    Attributes:
        keys: layer -> float32 [] or [H, 1, 1].
        values: likewise.
    """

    keys: Mapping[int, Tensor] = field(default_factory=dict)
    values: Mapping[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class CacheScheme:
    """How a runtime keeps keys and values.

    Attributes:
        name: as ``--kv-cache`` takes it, or what the model's config says.
        keys: rounding of keys.
        values: rounding of values.
        runtime: which one keeps them so.
        scales: for roundings that don't find their own.
    """

    name: str
    keys: HeadRounding
    values: HeadRounding
    runtime: str
    scales: StoredScales = field(default_factory=StoredScales)

    def cache(self, config: Any) -> RoundedCache:
        """An empty cache for a decoder of this config of transformers."""
        return RoundedCache(config, self)

    def bits(self, keys: int, values: int) -> float:
        """Bits of a head's keys and values of these widths, for one token."""
        return keys * self.keys.bits(keys) + values * self.values.bits(values)


def named_scheme(name: str, scales: StoredScales) -> CacheScheme | None:
    """The scheme that ``--kv-cache`` names; None for ``float``, which rounds nothing.

    Args:
        name: one of `scheme_names`, or two of them: keys/values.
        scales: those of the model's files, which vLLM uses for FP8.

    Raises:
        EvaluationError: no such scheme; the message lists those there are.
    """
    if name == FLOAT:
        return None
    halves = name.split(_BETWEEN)
    if len(halves) > 2 or not all(half in _KINDS for half in halves):
        raise EvaluationError(
            "unknown key-value cache", found=repr(name),
            allowed=f"{', '.join(scheme_names())}; keys{_BETWEEN}values for two of them",
        )  # fmt: skip
    keys, values = _KINDS[halves[0]], _KINDS[halves[-1]]
    return CacheScheme(
        name, keys.keys, values.values, " and ".join(dict.fromkeys([keys.runtime, values.runtime])), scales
    )


class RoundedCache(DynamicCache):  # type: ignore[misc]
    """transformers' cache, in which keys and values are what a runtime keeps of them."""

    def __init__(self, config: Any, scheme: CacheScheme) -> None:
        super().__init__(config=config)
        self._scheme = scheme
        self._bits: dict[int, tuple[float, float]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Round, then keep: [B, H, S, D]."""
        scheme = self._scheme
        keys = scheme.keys(key_states, scheme.scales.keys.get(layer_idx))
        values = scheme.values(value_states, scheme.scales.values.get(layer_idx))
        heads, widths = key_states.shape[1], (key_states.shape[-1], value_states.shape[-1])
        self._bits[layer_idx] = heads * scheme.bits(*widths), heads * _F16_BITS * sum(widths)
        kept: tuple[Tensor, Tensor] = super().update(keys, values, layer_idx, *args, **kwargs)
        return kept

    @property
    def nbytes_per_token(self) -> tuple[float, float]:
        """Bytes that all layers keep of a token, and what they would in float16; (0, 0) if none was used."""
        return sum(b for b, _ in self._bits.values()) / 8, sum(f for _, f in self._bits.values()) / 8
