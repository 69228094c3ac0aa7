"""MXFP4 as compressed-tensors stores it: the numbers of GGUF's MXFP4, codes and scales in arrays of their own.

    value = E2M1 number * 2**(e - 127)         32 columns share e (E8M0, bias 127)

Layout: ``mxfp4-pack-quantized``, two codes in a byte, the even column in the low bits. Source: OCP Microscaling Formats
(MX) specification v1.0; compressed-tensors' MXFP4PackedCompressor.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, ClassVar

import numpy.typing as npt

from fewbits.formats.bit_packing import pack_nibbles, unpack_nibbles
from fewbits.formats.format import Codes, Floats, Format, LinearPart, Params, Parts, QTensor
from fewbits.formats.gguf_mxfp4 import (
    MXFP4,
    ExponentParams,
    exponent_numbers,
    exponents_taken_over,
)
from fewbits.formats.numbers import FloatNumbers, Numbers
from fewbits.formats.registry import register


class PackedMXFP4Format(Format[ExponentParams]):
    """MXFP4 in two arrays; scales and codes are chosen as in GGUF's."""

    params_type: ClassVar[type[Params]] = ExponentParams
    name = "MXFP4_PACKED"
    block = MXFP4.block
    bits = MXFP4.bits
    fallback: str | None = "FP8_E4M3_CHANNEL"

    def fit(self, weight: Floats, importance: Floats | None = None) -> ExponentParams:
        """Powers of two by candidate search; see `Format.fit`."""
        return MXFP4.fit(weight, importance)

    def round(self, weight: Floats, params: ExponentParams, column: int = 0) -> Codes:
        """Nearest codes: float32 [R, S] -> uint8 [R, S], 0 … 15."""
        return MXFP4.round(weight, params, column)

    def decode(self, codes: Codes, params: ExponentParams, column: int = 0) -> Floats:
        """E2M1 number times power of two, exact: uint8 [R, S] -> float32 [R, S]."""
        return MXFP4.decode(codes, params, column)

    def numbers(self, tensor: QTensor) -> FloatNumbers:
        """See `Format.numbers`."""
        params = tensor.params
        assert isinstance(params, ExponentParams)
        return exponent_numbers(tensor, params, self.block)

    def take_over(self, numbers: Numbers) -> QTensor:
        """See `Format.take_over`."""
        return exponents_taken_over(self, numbers)

    def linear_parts(self) -> tuple[LinearPart[ExponentParams], ...]:
        """The power of two, if a neighbour of it is better."""
        return MXFP4.linear_parts()

    def pack(self, codes: Codes, params: ExponentParams) -> Parts:
        """compressed-tensors' arrays: ``weight_packed`` uint8 [N, K / 2], ``weight_scale`` uint8 [N, K / 32]."""
        return {
            "weight_packed": pack_nibbles(codes),
            "weight_scale": params.e.reshape(codes.shape[0], -1),
        }

    def unpack(
        self, parts: Mapping[str, npt.NDArray[Any]], shape: tuple[int, int]
    ) -> tuple[Codes, ExponentParams]:
        """The inverse of `pack`."""
        codes = unpack_nibbles(parts["weight_packed"], shape[1])
        return codes, ExponentParams(parts["weight_scale"].reshape(-1))

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Exact bytes of codes and scales."""
        return prod(shape[:-1]) * (shape[-1] // self.block_of(shape[-1])) * 17


register(PackedMXFP4Format())
