"""8-bit integers with a scale per row, as bitsandbytes holds them for its 8-bit matrix products.

    value = code * SCB / 127            code -128 … 127

    weight   I8 [N, K]
    SCB      F32 [N]    127 times the scale

Scales have 16 significant bits, so that 127 of them is a float32 and they come back exactly.
Source: the package bitsandbytes (nn.Linear8bitLt, functional.int8_vectorwise_dequant).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from fewbits.formats.format import Codes, Floats, Parts
from fewbits.formats.integer_grid import IntegerGrid, IntegerParams
from fewbits.formats.registry import register
from fewbits.formats.scale_type import FLOAT32

_SIGNIFICANT = 16


class BitsandbytesInt8Format(IntegerGrid):
    """bitsandbytes' 8-bit container."""

    name = "BNB_INT8"
    bits = Fraction(8)

    def __init__(self) -> None:
        scales = replace(FLOAT32, significant=_SIGNIFICANT, largest=FLOAT32.largest / 2)
        super().__init__(8, "CHANNEL", 0, scales, symmetric=True)

    def pack(self, codes: Codes, params: IntegerParams) -> Parts:
        """The arrays above, of some rows."""
        return {
            "weight": (codes - np.uint8(self._middle)).view(np.int8),
            "SCB": params.scale * np.float32(127),
        }

    def unpack(
        self, parts: Mapping[str, npt.NDArray[Any]], shape: tuple[int, int]
    ) -> tuple[Codes, IntegerParams]:
        """The inverse of `pack`."""
        del shape
        scale: Floats = (parts["SCB"].reshape(-1) / np.float32(127)).astype(np.float32)
        codes = parts["weight"].view(np.uint8) + np.uint8(self._middle)
        return codes, IntegerParams(scale, np.full(scale.shape, self._middle, np.uint8))


register(BitsandbytesInt8Format())
