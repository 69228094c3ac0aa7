"""What runtimes read back from a quantized key-value cache: roundings of heads, each with its source.

Keys enter the cache after the rotary embedding, values as they are, both as [B, H, S, D]: sequences, heads of keys,
positions, width of a head. All of it here is float32.

    llama.cpp   blocks of 32 along D, rounded as on the CPU (ggml-quants.c, `quantize_row_*_ref`);
                since pull request 21038 (April 2026) between two Hadamard matrices where 64 divides D: keys in parts of
                the largest power of two that divides D, values in parts of 64 (llama-kv-cache.cpp, `attn_rot_k`)
    vLLM        FP8 with a scale for all keys of a layer and one for all values, or one for each head
                (csrc/cache_kernels.cu), which its kernels for x86 CPUs cut off (csrc/cpu/cpu_attn_fp8.hpp);
                *_per_token_head with a scale for each head of each token (v1/attention/ops/triton_quant_kv)
    MLX         integers with a scale and a bias for each group along D (mlx.core.quantize)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from math import log2

import torch
from torch import Tensor

from fewbits.errors import EvaluationError
from fewbits.formats.gguf_iq4 import LEVELS

_BLOCK = 32  # columns that share a scale in llama.cpp's types
_ROTATED = 64  # what must divide D for llama.cpp to rotate
# Seed of the signs in vLLM's randomized Hadamard transform.
_SIGNS_SEED = 0x9E3779B9
_LEAST_SCALE = 1e-6


class HeadRounding(ABC):
    """Rounding of keys or of values on their way into the cache."""

    @abstractmethod
    def bits(self, width: int) -> float:
        """Bits that a number takes in the cache, scales included, for heads of this width."""

    @abstractmethod
    def __call__(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """What attention reads: float32 [B, H, S, D] -> float32 [B, H, S, D].

        Args:
            x: keys or values.
            scale: of the model's files, float32 [] or [H, 1, 1]; roundings that find their own ignore it.

        Raises:
            EvaluationError: the runtime doesn't take heads of this width.
        """


@dataclass(frozen=True)
class FloatType(HeadRounding):
    """Stored as a float type."""

    dtype: torch.dtype

    def bits(self, width: int) -> float:
        """See `HeadRounding.bits`."""
        del width
        return 8.0 * self.dtype.itemsize

    def __call__(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """See `HeadRounding.__call__`."""
        del scale
        return x.to(self.dtype).to(torch.float32)


@dataclass(frozen=True)
class Static(HeadRounding):
    """Codes of 8 bits with scales that were chosen before; without any the scale is 1, as vLLM has it.

    Attributes:
        dtype: of the codes; int8 or one of the FP8 types. What lies beyond its range is clipped.
        truncated: FP8 codes are cut off towards zero instead of rounded.
    """

    dtype: torch.dtype
    truncated: bool = False

    def bits(self, width: int) -> float:
        """See `HeadRounding.bits`."""
        del width
        return 8.0

    def __call__(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """See `HeadRounding.__call__`."""
        scale = torch.ones(()) if scale is None else scale
        codes = x / scale
        if self.dtype == torch.int8:
            return codes.round().clamp(-128, 127) * scale
        largest = torch.finfo(self.dtype).max
        inside = codes.clamp(-largest, largest)
        kept = inside.to(self.dtype)
        if self.truncated:
            # Bytes are sign and magnitude: one less is the next number towards zero.
            beyond = kept.to(torch.float32).abs() > inside.abs()
            kept = (kept.view(torch.uint8) - beyond.to(torch.uint8)).view(self.dtype)
        return kept.to(torch.float32) * scale


@dataclass(frozen=True)
class PerTokenHead(HeadRounding):
    """8 bits with a float32 scale for each head of each token: the largest magnitude becomes the largest code.

    Attributes:
        dtype: int8, whose codes Triton's store cuts off towards zero, or float8_e4m3fn, whose codes it rounds.
    """

    dtype: torch.dtype

    def bits(self, width: int) -> float:
        """See `HeadRounding.bits`."""
        return 8.0 + 32.0 / width

    def __call__(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """See `HeadRounding.__call__`."""
        integer = self.dtype == torch.int8
        largest = 127.0 if integer else torch.finfo(self.dtype).max
        scale = (x.abs().amax(dim=-1, keepdim=True) / largest).clamp_min(_LEAST_SCALE)
        codes = (x * (1.0 / scale)).clamp(-largest, largest)
        return (codes.trunc() if integer else codes.to(self.dtype).to(torch.float32)) * scale


@dataclass(frozen=True)
class Int4PerTokenHead(HeadRounding):
    """4 bits with a scale and a zero point for each head of each token, after signs and a Hadamard matrix.

    The zero point lies in the four lowest bits of the scale's mantissa, of which nothing is lost that counts.
    """

    def bits(self, width: int) -> float:
        """See `HeadRounding.bits`."""
        return 4.0 + 32.0 / width

    def __call__(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """See `HeadRounding.__call__`."""
        width = x.shape[-1]
        if width & (width - 1):
            raise EvaluationError(
                "int4_per_token_head takes heads whose width is a power of two", found=f"heads of {width}"
            )
        signs, matrix = _signs(width), hadamard(width)
        rotated = (x * signs) @ matrix
        least, most = rotated.amin(dim=-1, keepdim=True), rotated.amax(dim=-1, keepdim=True)
        scale = ((most - least) / 15.0).clamp_min(_LEAST_SCALE)
        zero = (-least / scale).round().clamp(0, 15)
        codes = (rotated / scale + zero).round().clamp(0, 15)
        return (((codes - zero) * scale) @ matrix) * signs


@dataclass(frozen=True)
class BlockType(HeadRounding):
    """One of llama.cpp's types of 32 columns with a float16 scale (and a float16 minimum).

    Attributes:
        name: of the type.
        width: bits of a code.
        affine: with a minimum.
    """

    name: str
    width: int
    affine: bool = False

    def bits(self, width: int) -> float:
        """See `HeadRounding.bits`."""
        del width
        return self.width + (32.0 if self.affine else 16.0) / _BLOCK

    def __call__(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """See `HeadRounding.__call__`."""
        del scale
        if x.shape[-1] % _BLOCK:
            raise EvaluationError(
                f"llama.cpp can't keep heads of this width as {self.name}",
                found=f"heads of {x.shape[-1]}", allowed=f"multiples of {_BLOCK}", action="Choose f16",
            )  # fmt: skip
        blocks = x.reshape(-1, _BLOCK)
        return (self._affine(blocks) if self.affine else self._scaled(blocks)).reshape(x.shape)

    def _scaled(self, x: Tensor) -> Tensor:
        largest = x.gather(1, x.abs().argmax(dim=1, keepdim=True))
        if self.width == 8:
            d = largest.abs() / 127.0
            return (x * _inverse(d)).round() * _float16(d)
        half = 1 << (self.width - 1)
        d = largest / -half
        codes = (x * _inverse(d) + (half + 0.5)).floor().clamp_max(2 * half - 1)
        return (codes - half) * _float16(d)

    def _affine(self, x: Tensor) -> Tensor:
        least, most = x.amin(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)
        d = (most - least) / ((1 << self.width) - 1)
        codes = ((x - least) * _inverse(d) + 0.5).floor().clamp_max((1 << self.width) - 1)
        return codes * _float16(d) + _float16(least)


@dataclass(frozen=True)
class UnevenBlockType(HeadRounding):
    """llama.cpp's iq4_nl: 16 levels, the scale by least squares with weights x² after the codes are chosen."""

    def bits(self, width: int) -> float:
        """See `HeadRounding.bits`."""
        del width
        return 4.5

    def __call__(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """See `HeadRounding.__call__`."""
        del scale
        if x.shape[-1] % _BLOCK:
            raise EvaluationError(
                "llama.cpp can't keep heads of this width as iq4_nl",
                found=f"heads of {x.shape[-1]}", allowed=f"multiples of {_BLOCK}", action="Choose f16",
            )  # fmt: skip
        levels = torch.tensor(LEVELS, dtype=torch.float32)
        blocks = x.reshape(-1, _BLOCK)
        largest = blocks.gather(1, blocks.abs().argmax(dim=1, keepdim=True))
        places = blocks * _inverse(largest / levels[0])
        borders = (levels[1:] + levels[:-1]) / 2
        chosen = levels[torch.bucketize(places.contiguous(), borders, right=True)]
        weights = blocks.square()
        squares = (weights * chosen * chosen).sum(1, keepdim=True)
        d = (weights * chosen * blocks).sum(1, keepdim=True) / squares.where(squares > 0, 1.0)
        return (chosen * _float16(d)).reshape(x.shape)


@dataclass(frozen=True)
class AffineGroups(HeadRounding):
    """MLX's integers: a bfloat16 scale and bias for each group, the end of larger magnitude met exactly.

    Attributes:
        width: bits of a code.
        group: columns that share them.
    """

    width: int
    group: int = 64

    def bits(self, width: int) -> float:
        """See `HeadRounding.bits`."""
        del width
        return self.width + 32.0 / self.group

    def __call__(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """See `HeadRounding.__call__`."""
        if x.shape[-1] % self.group:
            raise EvaluationError(
                "MLX can't quantize heads of this width in such groups",
                found=f"heads of {x.shape[-1]}", allowed=f"multiples of {self.group}",
            )  # fmt: skip
        groups = x.reshape(-1, self.group)
        least, most = groups.amin(dim=1, keepdim=True), groups.amax(dim=1, keepdim=True)
        top = (1 << self.width) - 1
        lower = least.abs() > most.abs()
        scale = ((most - least) / top).clamp_min(1e-7)
        scale = torch.where(lower, scale, -scale)
        edge = torch.where(lower, least, most)
        steps = (edge / scale).round()
        zero = steps == 0
        scale = torch.where(zero, scale, edge / steps.where(~zero, 1.0))
        bias = torch.where(zero, torch.zeros_like(edge), edge)
        codes = ((groups - bias) / scale).round().clamp(0, top)
        kept = scale.to(torch.bfloat16).to(torch.float32), bias.to(torch.bfloat16).to(torch.float32)
        return (codes * kept[0] + kept[1]).reshape(x.shape)


@dataclass(frozen=True)
class Rotated(HeadRounding):
    """Rounded between two multiplications with an orthogonal Hadamard matrix, which together leave all as it was.

    Attributes:
        rounding: of what the matrix gives.
        whole: in parts of the largest power of two that divides D, rather than of 64.
    """

    rounding: HeadRounding
    whole: bool

    def bits(self, width: int) -> float:
        """See `HeadRounding.bits`."""
        return self.rounding.bits(width)

    def __call__(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """See `HeadRounding.__call__`."""
        width = x.shape[-1]
        if width % _ROTATED:
            return self.rounding(x, scale)
        size = width & -width if self.whole else _ROTATED
        matrix = hadamard(size)

        def rotate(y: Tensor) -> Tensor:
            return (y.reshape(*y.shape[:-1], -1, size) @ matrix).reshape(y.shape)

        return rotate(self.rounding(rotate(x), scale))


@dataclass(frozen=True)
class Reordered(HeadRounding):
    """Rounded with the channels of a head in the order in which the runtime has them.

    Attributes:
        rounding: of the runtime's channels.
        places: of the model's channel i, its place among the runtime's.
    """

    rounding: HeadRounding
    places: tuple[int, ...]

    def bits(self, width: int) -> float:
        """See `HeadRounding.bits`."""
        return self.rounding.bits(width)

    def __call__(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """See `HeadRounding.__call__`."""
        if x.shape[-1] != len(self.places):
            return self.rounding(x, scale)
        places = torch.tensor(self.places)
        return self.rounding(x[..., places.argsort()], scale)[..., places]


@cache
def hadamard(size: int) -> Tensor:
    """Sylvester's matrix of a power of two, scaled to be its own inverse: float32 [size, size]."""
    matrix = torch.ones(1, 1)
    for _ in range(int(log2(size))):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    scaled: Tensor = matrix / size**0.5
    return scaled


@cache
def _signs(width: int) -> Tensor:
    generator = torch.Generator().manual_seed(_SIGNS_SEED)
    return 2.0 * torch.bernoulli(torch.full((width,), 0.5), generator=generator) - 1.0


def _inverse(d: Tensor) -> Tensor:
    """1 / d, and 0 for 0."""
    return torch.where(d != 0, 1.0 / d.where(d != 0, 1.0), 0.0)


def _float16(x: Tensor) -> Tensor:
    return x.to(torch.float16).to(torch.float32)
