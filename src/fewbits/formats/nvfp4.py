"""NVFP4: FP4 E2M1 numbers, an FP8 E4M3 scale per 16 columns and one float32 scale per tensor.

    value = E2M1 number * (E4M3 scale / global scale)

The global scale is compressed-tensors' and NVIDIA's convention, 448 * 6 / largest magnitude: it is what block
scales are divided by, and it gives the block with the largest weight the largest E4M3 scale.
Layout: compressed-tensors' ``nvfp4-pack-quantized``, two codes in a byte, the even column in the low bits.

    byte:  s e e m  s e e m        (high bit left)
           odd col  even col
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from fewbits.errors import FormatError
from fewbits.formats.bit_packing import pack_nibbles, unpack_nibbles
from fewbits.formats.format import Codes, Floats, Format, LinearPart, Params, Parts, QTensor
from fewbits.formats.minifloat import BFLOAT16_MAX, E2M1, E4M3
from fewbits.formats.numbers import FloatNumbers, Numbers, UnlikeError
from fewbits.formats.registry import register
from fewbits.formats.scale_search import ScaleSearch, relative_importance, tiles

# Block scales that are tried, in steps of E4M3 from the one that maps the largest weight to 6: one octave
# down, and up to where the largest weight gets 4.
_STEPS = range(-6, 6)


@dataclass(frozen=True)
class NVFP4Params(Params):
    """Block scale as an E4M3 code uint8 [R], never 0; global scale float32 [R], equal in the whole tensor."""

    scale: Codes
    global_scale: Floats

    @property
    def step(self) -> Floats:
        """What codes are multiplied by, float32 [R]."""
        return E4M3.values[self.scale] / self.global_scale


class NVFP4Format(Format[NVFP4Params]):
    """NVFP4; call `prepare` before `fit`."""

    params_type = NVFP4Params
    name = "NVFP4"
    block = 16
    bits = Fraction(9, 2)
    fallback = "FP8_E4M3_CHANNEL"
    tensor_parts = ("weight_global_scale",)
    part_dtypes = MappingProxyType({"weight_scale": "F8_E4M3"})

    _global_scale: np.float32 | None = None

    def prepare(self, chunks: Iterable[Floats]) -> NVFP4Format:
        """A copy with the global scale of the tensor that these rows make up."""
        largest = np.float32(0)
        for chunk in chunks:
            if chunk.size:
                largest = max(largest, chunk.max(), -chunk.min())
        # compressed-tensors' float32 operations (torch divides a number by a tensor through the
        # reciprocal), and its answer for tensors too small to scale: 1.
        largest = min(max(largest, np.finfo(np.float32).tiny), np.float32(BFLOAT16_MAX))
        with np.errstate(over="ignore"):
            scale = np.float32(1) / largest * np.float32(E4M3.maximum * E2M1.maximum)
        bound = copy.copy(self)
        bound._global_scale = scale if np.isfinite(scale) else np.float32(1)
        return bound

    def fit(self, weight: Floats, importance: Floats | None = None) -> NVFP4Params:
        """Block scales by trying neighbouring E4M3 numbers; see `Format.fit`.

        Raises:
            FormatError: `prepare` wasn't called.
        """
        if self._global_scale is None:
            raise FormatError(
                "NVFP4 has a scale of the whole tensor and doesn't know the tensor yet",
                action="Call prepare(chunks) and use the format that it returns.",
            )
        out = np.empty(weight.shape[0], np.uint8)
        for part in tiles(weight.shape):
            # In units of 1 / global scale: numbers up to 2688, block scales that are E4M3 numbers.
            x = weight[part] * self._global_scale
            search = ScaleSearch(
                x,
                relative_importance(importance, part, weight.shape),
                lambda scaled, _: E2M1.nearest(scaled),
                lambda scale: E4M3.values[_scale_code(scale)],
            )
            plain = _scale_code(np.abs(x).max(axis=1) / np.float32(E2M1.maximum)).astype(np.int16)
            search.consider(E4M3.values[plain])
            for step in _STEPS:
                search.consider(E4M3.values[np.clip(plain + step, 1, _LARGEST_SCALE)])
            out[part] = _scale_code(search.scale)
        return NVFP4Params(out, np.broadcast_to(self._global_scale, out.shape))

    def round(self, weight: Floats, params: NVFP4Params, column: int = 0) -> Codes:
        """E2M1 codes, ties to even, saturating: float32 [R, S] -> uint8 [R, S], 0 … 15."""
        del column
        with np.errstate(over="ignore"):
            return E2M1.codes(weight / params.step[:, None])

    def decode(self, codes: Codes, params: NVFP4Params, column: int = 0) -> Floats:
        """E2M1 number times ``scale / global scale``, in float32: uint8 [R, S] -> float32 [R, S]."""
        del column
        return E2M1.values[codes] * params.step[:, None]

    def numbers(self, tensor: QTensor) -> FloatNumbers:
        """See `Format.numbers`."""
        params = tensor.params
        assert isinstance(params, NVFP4Params)
        rows = tensor.shape[0]
        step, scale = params.step.reshape(rows, -1), params.scale.reshape(rows, -1)
        return FloatNumbers(E2M1, self.block, tensor.codes, step, scale, np.float32(params.global_scale[0]))

    def take_over(self, numbers: Numbers) -> QTensor:
        """See `Format.take_over`."""
        if not isinstance(numbers, FloatNumbers) or numbers.grid is not E2M1:
            raise UnlikeError("its numbers aren't E2M1")
        if numbers.scale is None or numbers.global_scale is None:
            raise FormatError("it has no scale of the whole tensor")
        scale = numbers.scale.reshape(-1)
        params = NVFP4Params(scale, np.broadcast_to(numbers.global_scale, scale.shape))
        return QTensor(self, numbers.codes.shape, numbers.codes, params)

    def linear_parts(self) -> tuple[LinearPart[NVFP4Params], ...]:
        """The block's scale; the tensor's isn't one block's to change."""
        return (
            LinearPart(
                slice(0, self.block),
                lambda params: (E4M3.values[params.scale],),
                lambda codes, params: (E2M1.values[codes] / params.global_scale[:, None],),
                lambda params, scales: NVFP4Params(
                    _scale_code(np.maximum(scales[0], np.float32(0))), params.global_scale
                ),
            ),
        )

    def pack(self, codes: Codes, params: NVFP4Params) -> Parts:
        """compressed-tensors' arrays.

        ``weight_packed`` uint8 [N, K / 2], ``weight_scale`` E4M3 as uint8 [N, K / 16],
        ``weight_global_scale`` float32 [1].
        """
        return {
            "weight_packed": pack_nibbles(codes),
            "weight_scale": params.scale.reshape(codes.shape[0], -1),
            "weight_global_scale": np.ascontiguousarray(params.global_scale[:1]),
        }

    def unpack(
        self, parts: Mapping[str, npt.NDArray[Any]], shape: tuple[int, int]
    ) -> tuple[Codes, NVFP4Params]:
        """The inverse of `pack`."""
        codes = unpack_nibbles(parts["weight_packed"], shape[1])
        scale = parts["weight_scale"].view(np.uint8).reshape(-1)
        return codes, NVFP4Params(scale, np.broadcast_to(parts["weight_global_scale"], scale.shape))

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Exact bytes of codes, block scales and the global scale."""
        groups = shape[-1] // self.block_of(shape[-1])
        return prod(shape[:-1]) * groups * 9 + 4


_LARGEST_SCALE = 0x7E  # E4M3's code of 448


def _scale_code(scale: Floats) -> Codes:
    """E4M3 codes of positive scales, at least the smallest number that isn't 0."""
    return np.maximum(E4M3.codes(scale), np.uint8(1))


register(NVFP4Format())
