"""What MLX computes on Apple silicon: integers with a scale and a real-valued bias per group, and MXFP4.

Names: ``MLX{2|3|4|5|6|8}_G{32|64|128}[_F16]`` and ``MLX_MXFP4``.

    value = scale * code + bias           code in 0 … 2**b - 1; scales and biases are bfloat16, or float16 with _F16

    weight   U32 [N, K * b / 32]   the codes of a row as one run of bits, from the lowest
    scales   BF16 or F16 [N, G]    MXFP4: U8 [N, K / 32], biased exponents
    biases   BF16 or F16 [N, G]    MXFP4: none

Source: MLX's documentation of mlx.core.quantize and its package.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fewbits.formats.bit_packing import pack_words, unpack_words
from fewbits.formats.format import Codes, Floats, Format, LinearPart, Params, Parts, QTensor
from fewbits.formats.gguf_mxfp4 import ExponentParams
from fewbits.formats.minifloat import bfloat16_bits, bfloat16_values
from fewbits.formats.mxfp4_packed import PackedMXFP4Format
from fewbits.formats.numbers import Numbers, StepNumbers, affine_numbers, affine_taken_over
from fewbits.formats.registry import register, register_family
from fewbits.formats.scale_search import denormalise, dot, normalise, relative_importance, tiles
from fewbits.formats.scale_type import BFLOAT16, FLOAT16, ScaleType

WIDTHS = (8, 6, 5, 4, 3, 2)
GROUPS = (32, 64, 128)

# Ranges that are tried, as shares of the whole one, by width: fewer bits gain more from clipping outliers.
_NARROWEST = {2: 0.5, 3: 0.6, 4: 0.7, 5: 0.8, 6: 0.85, 8: 0.95}
_CANDIDATES = 8
_ROUNDS = 3


@dataclass(frozen=True)
class AffineParams(Params):
    """Scale float32 [R], positive, and bias float32 [R], numbers of the format's scale type."""

    scale: Floats
    bias: Floats


class AffineFormat(Format[AffineParams]):
    """Integers with a scale and a bias for each group."""

    params_type = AffineParams

    def __init__(self, width: int, group: int, scales: ScaleType) -> None:
        self.width = width
        self.block = group
        self.scales = scales
        self.name = affine_name(width, group, scales)
        self.bits = width + Fraction(32, group)
        self.fallback = affine_name(width, group // 2, scales) if group > GROUPS[0] else None
        self.part_dtypes = {"scales": scales.name, "biases": scales.name}

    @property
    def codes(self) -> range:
        """All numbers of `width` bits."""
        return range(1 << self.width)

    def fit(self, weight: Floats, importance: Floats | None = None) -> AffineParams:
        """Scales and biases by narrowing the range, then least squares and rounding in turn; see `Format.fit`."""
        scale, bias = (np.empty(weight.shape[0], np.float32) for _ in range(2))
        for part in tiles(weight.shape):
            x, exponent = normalise(weight[part])
            found = _Search(x, relative_importance(importance, part, weight.shape), self._top, self.scales)
            found.ranges(np.linspace(_NARROWEST[self.width], 1, _CANDIDATES, dtype=np.float32))
            found.refine(_ROUNDS)
            with np.errstate(over="ignore"):
                scale[part] = denormalise(found.scale, exponent, self.scales.largest / (1 << self.width))
                bias[part] = np.ldexp(found.bias, exponent)
        return self._stored(scale, bias)

    @property
    def _top(self) -> int:
        return (1 << self.width) - 1

    def _stored(self, scale: Floats, bias: Floats) -> AffineParams:
        limit = np.float32(self.scales.largest)
        scale = self.scales.store(np.clip(scale, 0, limit / np.float32(1 << self.width)))
        return AffineParams(scale, self.scales.round(np.clip(bias, -limit, limit)))

    def round(self, weight: Floats, params: AffineParams, column: int = 0) -> Codes:
        """Nearest codes, ties to even, saturating: float32 [R, S] -> uint8 [R, S]."""
        del column
        with np.errstate(over="ignore"):
            x = (weight - params.bias[:, None]) / params.scale[:, None]
        codes: Codes = np.clip(np.rint(x), 0, self._top).astype(np.uint8)
        return codes

    def decode(self, codes: Codes, params: AffineParams, column: int = 0) -> Floats:
        """``scale * code + bias``: uint8 [R, S] -> float32 [R, S]."""
        del column
        return codes.astype(np.float32) * params.scale[:, None] + params.bias[:, None]

    def numbers(self, tensor: QTensor) -> StepNumbers:
        """See `Format.numbers`."""
        params = tensor.params
        assert isinstance(params, AffineParams)
        return affine_numbers(self.block, tensor, params.scale, params.bias)

    def take_over(self, numbers: Numbers) -> QTensor:
        """See `Format.take_over`; zero points become biases."""
        codes, scale, bias = affine_taken_over(self, numbers, self._top, self.scales)
        return QTensor(self, (len(codes), codes.shape[1]), codes, AffineParams(scale, bias))

    def linear_parts(self) -> tuple[LinearPart[AffineParams], ...]:
        """Scale and bias."""
        return (
            LinearPart(
                slice(None),
                lambda params: (params.scale, params.bias),
                lambda codes, _: (codes.astype(np.float32), np.ones(codes.shape, np.float32)),
                lambda _, numbers: self._stored(*numbers),
            ),
        )

    def pack(self, codes: Codes, params: AffineParams) -> Parts:
        """The arrays above, of some rows."""
        rows = codes.shape[0]
        return {
            "weight": pack_words(codes, self.width).view("<u4"),
            "scales": self._bits(params.scale).reshape(rows, -1),
            "biases": self._bits(params.bias).reshape(rows, -1),
        }

    def unpack(
        self, parts: Mapping[str, npt.NDArray[Any]], shape: tuple[int, int]
    ) -> tuple[Codes, AffineParams]:
        """The inverse of `pack`."""
        codes = unpack_words(parts["weight"].view("<i4"), self.width, shape[1])
        scale, bias = (self._values(parts[name].reshape(-1)) for name in ("scales", "biases"))
        return codes, AffineParams(scale, bias)

    def _bits(self, numbers: Floats) -> npt.NDArray[Any]:
        return bfloat16_bits(numbers) if self.scales is BFLOAT16 else numbers.astype(np.float16)

    def _values(self, stored: npt.NDArray[Any]) -> Floats:
        return bfloat16_values(stored) if self.scales is BFLOAT16 else stored.astype(np.float32)


class _Search:
    """The best scale and bias so far of each of R blocks x [R, B]."""

    def __init__(self, x: Floats, importance: Floats | None, top: int, scales: ScaleType) -> None:
        self._x = x
        self._weights = np.ones_like(x) if importance is None else importance
        self._top = top
        self._scales = scales
        self.scale = np.ones(len(x), np.float32)
        self.bias = np.zeros(len(x), np.float32)
        self._error = np.full(len(x), np.inf, np.float32)

    def _codes(self, scale: Floats, bias: Floats) -> Floats:
        codes = np.rint((self._x - bias[:, None]) / scale[:, None])
        clipped: Floats = np.clip(codes, 0, self._top)
        return clipped

    def consider(self, scale: Floats, bias: Floats) -> None:
        """Try these for every block, and keep them where they are better."""
        scale, bias = self._scales.round(np.where(scale > 0, scale, 1)), self._scales.round(bias)
        residual = self._codes(scale, bias) * scale[:, None] + bias[:, None] - self._x
        error = dot(residual * self._weights, residual)
        better = error < self._error
        self.scale = np.where(better, scale, self.scale)
        self.bias = np.where(better, bias, self.bias)
        self._error = np.where(better, error, self._error)

    def ranges(self, shares: Floats) -> None:
        """The whole range, and narrower ones about its middle, its lower and its upper end."""
        low, high = self._x.min(axis=1), self._x.max(axis=1)
        whole = (high - low) / np.float32(self._top)
        for share in shares:
            for place in (0.5, 0, 1):
                self.consider(whole * share, low + (high - low) * np.float32((1 - share) * place))

    def refine(self, rounds: int) -> None:
        """The least-squares line through the best codes so far, and the codes of that line."""
        for _ in range(rounds):
            codes = self._codes(self.scale, self.bias)
            n, total = self._weights.sum(axis=1), dot(self._weights, codes)
            squares, x = dot(self._weights * codes, codes), dot(self._weights, self._x)
            product = dot(self._weights * codes, self._x)
            spread = n * squares - total * total
            usable = spread > 1e-6 * n * squares
            scale = np.where(usable, (n * product - total * x) / np.where(usable, spread, 1), self.scale)
            scale = np.where(scale > 0, scale, self.scale)
            self.consider(scale, (x - scale * total) / n)


class MlxMXFP4Format(PackedMXFP4Format):
    """MXFP4 in MLX's arrays."""

    name = "MLX_MXFP4"
    fallback: str | None = None

    def pack(self, codes: Codes, params: ExponentParams) -> Parts:
        """The arrays above, of some rows."""
        parts = super().pack(codes, params)
        return {"weight": parts["weight_packed"].view("<u4"), "scales": parts["weight_scale"]}

    def unpack(
        self, parts: Mapping[str, npt.NDArray[Any]], shape: tuple[int, int]
    ) -> tuple[Codes, ExponentParams]:
        """The inverse of `pack`."""
        words = np.ascontiguousarray(parts["weight"])
        return super().unpack({"weight_packed": words.view(np.uint8), "weight_scale": parts["scales"]}, shape)


def affine_name(width: int, group: int, scales: ScaleType = BFLOAT16) -> str:
    """Name of the format."""
    return f"MLX{width}_G{group}{'_F16' if scales is FLOAT16 else ''}"


@cache
def _format(width: int, group: int, scales: ScaleType) -> AffineFormat:
    return AffineFormat(width, group, scales)


def _from_name(match: re.Match[str]) -> AffineFormat:
    return _format(int(match["width"]), int(match["group"]), FLOAT16 if match["half"] else BFLOAT16)


register(MlxMXFP4Format())
register_family(
    r"MLX(?P<width>[234568])_G(?P<group>32|64|128)(?P<half>_F16)?",
    _from_name,
    "MLX{2|3|4|5|6|8}_{G32|G64|G128}[_F16]",
)
