"""What NVIDIA's ModelOpt exports: FP8 per row, NVFP4 and 4-bit integers in its arrays.

    MODELOPT_FP8          weight F8_E4M3 [N, K]; weight_scale F32 [N]
    MODELOPT_NVFP4        weight U8 [N, K / 2], even column low; weight_scale F8_E4M3 [N, K / 16]; weight_scale_2 F32 []
    MODELOPT_INT4_G128    weight U8 [N / 2, K], even row low, two's complement; weight_scale F32 [N, K / 128]

    value = number * weight_scale [* weight_scale_2]

NVFP4's second scale is a power of two here, so that it is exactly 1 / global scale. Source: the package nvidia-modelopt
(torch/export/quant_utils.py, torch/quantization/qtensor).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from fewbits.errors import FormatError
from fewbits.formats.format import Codes, Floats, Parts, QTensor
from fewbits.formats.fp8 import FP8Format, FP8Params
from fewbits.formats.integer_grid import IntegerGrid, IntegerParams
from fewbits.formats.minifloat import E4M3
from fewbits.formats.numbers import Numbers
from fewbits.formats.nvfp4 import NVFP4Format, NVFP4Params
from fewbits.formats.registry import register
from fewbits.formats.scale_type import FLOAT32

_GROUP = 128


class ModelOptFP8Format(FP8Format):
    """FP8 with a scale per row, for activations rounded token by token."""

    def __init__(self) -> None:
        super().__init__(E4M3, "CHANNEL")
        self.name = "MODELOPT_FP8"

    def pack(self, codes: Codes, params: FP8Params) -> Parts:
        """The arrays above, of some rows."""
        return {"weight": codes, "weight_scale": np.ascontiguousarray(params.scale)}


class ModelOptNVFP4Format(NVFP4Format):
    """NVFP4; call `prepare` before `fit`."""

    name = "MODELOPT_NVFP4"
    fallback = "MODELOPT_FP8"
    tensor_parts = ("weight_scale_2",)
    part_dtypes = MappingProxyType({"weight_scale": "F8_E4M3"})

    def prepare(self, chunks: Iterable[Floats]) -> NVFP4Format:
        """A copy with the largest power of two that is no more than NVFP4's global scale of the tensor."""
        bound = copy.copy(super().prepare(chunks))
        assert bound._global_scale is not None
        exponent = np.frexp(bound._global_scale)[1] - 1
        bound._global_scale = np.float32(np.ldexp(np.float32(1), np.clip(exponent, -126, 126)))
        return bound

    def take_over(self, numbers: Numbers) -> QTensor:
        """See `Format.take_over`; products with the second scale must be the quotients by the global scale."""
        taken = super().take_over(numbers)
        params = taken.params
        assert isinstance(params, NVFP4Params)
        second = np.float32(1) / params.global_scale[:1]
        products = E4M3.values[params.scale] * second
        if np.float32(1) / second[0] != params.global_scale[0] or (products != params.step).any():
            raise FormatError(
                "its global scale isn't a power of two, so that block scales times its reciprocal are others"
            )
        return taken

    def pack(self, codes: Codes, params: NVFP4Params) -> Parts:
        """The arrays above, of some rows."""
        parts = super().pack(codes, params)
        return {
            "weight": parts["weight_packed"],
            "weight_scale": parts["weight_scale"],
            "weight_scale_2": np.float32(1) / parts["weight_global_scale"].reshape(()),
        }

    def unpack(
        self, parts: Mapping[str, npt.NDArray[Any]], shape: tuple[int, int]
    ) -> tuple[Codes, NVFP4Params]:
        """The inverse of `pack`."""
        second = np.asarray(parts["weight_scale_2"], np.float32).reshape(1)
        return super().unpack(
            {
                "weight_packed": parts["weight"],
                "weight_scale": parts["weight_scale"],
                "weight_global_scale": np.float32(1) / second,
            },
            shape,
        )


class ModelOptInt4Format(IntegerGrid):
    """4-bit integers in groups of 128, without zero points."""

    name = f"MODELOPT_INT4_G{_GROUP}"
    bits = 4 + Fraction(32, _GROUP)
    rows_together = 2
    fallback = "MODELOPT_FP8"

    def __init__(self) -> None:
        super().__init__(4, "GROUP", _GROUP, FLOAT32, symmetric=True)

    def pack(self, codes: Codes, params: IntegerParams) -> Parts:
        """The arrays above, of some rows: an even number of them."""
        nibbles = codes ^ np.uint8(8)  # code - 8 in two's complement
        return {
            "weight": nibbles[::2] | (nibbles[1::2] << np.uint8(4)),
            "weight_scale": np.ascontiguousarray(params.scale.reshape(codes.shape[0], -1)),
        }

    def unpack(
        self, parts: Mapping[str, npt.NDArray[Any]], shape: tuple[int, int]
    ) -> tuple[Codes, IntegerParams]:
        """The inverse of `pack`."""
        packed = parts["weight"]
        nibbles = np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=1).reshape(-1, shape[1])
        scale = parts["weight_scale"].reshape(-1)
        codes = nibbles[: shape[0]] ^ np.uint8(8)
        return codes, IntegerParams(scale, np.full(scale.shape, self._middle, np.uint8))


register(ModelOptFP8Format())
register(ModelOptNVFP4Format())
register(ModelOptInt4Format())
