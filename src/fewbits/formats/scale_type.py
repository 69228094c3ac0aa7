"""The dtypes in which containers store scales, and what follows from them for the search."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fewbits.formats.format import Floats
from fewbits.formats.minifloat import (
    BFLOAT16_MAX,
    FLOAT16_MAX,
    SMALLEST_SCALE,
    round_float16,
    round_significant,
)

_FLOAT16_BITS = 11
# Smallest float16 that isn't 0.
_FLOAT16_TINY = 2.0**-24


@dataclass(frozen=True)
class ScaleType:
    """A dtype of scales.

    Attributes:
        name: as safetensors calls it.
        significant: bits of scales: 24 are all of float32, 8 a bfloat16; 11 a float16, with its range.
        smallest: magnitude of the smallest scale.
        largest: magnitude that no product of scale and code exceeds.
        signed: whether scales may be negative, which gives a symmetric grid's extra code to either side.
        rounds_products: whether the runtime rounds products to this dtype too.
    """

    name: str
    significant: int
    smallest: float
    largest: float
    signed: bool
    rounds_products: bool

    def round(self, x: Floats) -> Floats:
        """The nearest numbers that it holds, of two as near the even one: float32 of any shape to the same."""
        if self.significant == _FLOAT16_BITS:
            return round_float16(x)
        return round_significant(x, self.significant)

    def store(self, scale: Floats) -> Floats:
        """Scales as they are stored: rounded, none of them 0."""
        magnitude = np.maximum(np.abs(scale), np.float32(self.smallest))
        return np.copysign(self.round(magnitude), scale)


BFLOAT16 = ScaleType("BF16", 8, SMALLEST_SCALE, BFLOAT16_MAX, signed=True, rounds_products=True)
FLOAT32 = ScaleType("F32", 24, SMALLEST_SCALE, BFLOAT16_MAX, signed=False, rounds_products=False)
# Runtimes multiply in the dtype of the activations, which isn't the format's to know.
FLOAT16 = ScaleType("F16", _FLOAT16_BITS, _FLOAT16_TINY, FLOAT16_MAX, signed=True, rounds_products=False)
