"""8-bit integers with a scale per row, as ONNX's own operator DequantizeLinear takes them.

    value = code * scale         code -128 … 127

    codes    I8 [N, K]
    scales   F32 [N]

Every runtime that reads ONNX has this operator. ONNX Runtime replaces it and the product after it by MatMulNBits when
it loads the model, and rounds activations to 8 bits then, in blocks of 32, unless its session option
``session.qdq_matmulnbits_accuracy_level`` says otherwise. Source: ONNX's operator specification, DequantizeLinear.

QDQ8_STATIC has the same arrays. Its graph rounds activations as well, by QuantizeLinear with one scale for all tokens,
which calibration finds; so integers are multiplied with integers, by ONNX Runtime and by NPUs' compilers.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from fewbits.formats.bit_packing import signed, unsigned
from fewbits.formats.format import Codes, Parts
from fewbits.formats.integer_grid import IntegerGrid, IntegerParams
from fewbits.formats.nbits import CODES, SCALES
from fewbits.formats.registry import register
from fewbits.formats.scale_type import FLOAT32

# Columns whose activations share a scale in ONNX Runtime.
ACTIVATION_BLOCK = 32


class QDQFormat(IntegerGrid):
    """The operator's layout."""

    name = "QDQ8"
    bits = Fraction(8)

    def __init__(self) -> None:
        super().__init__(8, "CHANNEL", 0, FLOAT32, symmetric=True)

    def pack(self, codes: Codes, params: IntegerParams) -> Parts:
        """The arrays above, of some rows."""
        return {
            CODES: signed(codes, self._middle),
            SCALES: params.scale.astype(np.float32),
        }

    def unpack(
        self, parts: Mapping[str, npt.NDArray[Any]], shape: tuple[int, int]
    ) -> tuple[Codes, IntegerParams]:
        """The inverse of `pack`."""
        del shape
        scale = parts[SCALES].reshape(-1)
        codes = unsigned(parts[CODES], self._middle)
        return codes, IntegerParams(scale, np.full(scale.shape, self._middle, np.uint8))


class QDQStaticFormat(QDQFormat):
    """The same for products of 8-bit integers."""

    name = "QDQ8_STATIC"


register(QDQFormat())
register(QDQStaticFormat())
