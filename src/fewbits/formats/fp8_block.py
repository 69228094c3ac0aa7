"""FP8 E4M3 with a float32 scale for each block of 128 rows and 128 columns, as DeepSeek-V3 was published.

    value = FP8 number * scale of its block

    columns    0 … 127   128 … 255
    rows 0 … 127     s00       s01        weight        F8_E4M3 [N, K]
       128 … 255     s10       s11        weight_scale  F32 [ceil(N / 128), K / 128]
       256 … N-1     s20       s21

The last blocks may have fewer rows. Runtimes' kernels take rows of a multiple of 128 only, and round inputs in groups
of 128 of a token. Layout: compressed-tensors' ``float-quantized`` with the strategy ``block``. Sources: DeepSeek-V3's
technical report, arXiv 2412.19437, 3.3.2; compressed-tensors, quantization/lifecycle/initialize.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from fewbits.errors import FormatError
from fewbits.formats.format import Codes, Floats, Parts, QTensor
from fewbits.formats.fp8 import FP8Format, FP8Params
from fewbits.formats.minifloat import E4M3
from fewbits.formats.numbers import FloatNumbers, Numbers, UnlikeError
from fewbits.formats.registry import register

_SIZE = 128


class FP8BlockFormat(FP8Format):
    """FP8 E4M3 in blocks of 128 rows and columns. Params have the block's scale in each of its rows."""

    block = _SIZE
    block_rows = _SIZE
    rows_together = _SIZE
    bits = Fraction(8) + Fraction(32, _SIZE * _SIZE)
    fallback: str | None

    def __init__(self) -> None:
        super().__init__(E4M3, "CHANNEL")  # no scale of the tensor
        self.name = "FP8_E4M3_BLOCK"
        self.fallback = "FP8_E4M3_CHANNEL"

    def _fit(self, weight: Floats, importance: Floats | None) -> FP8Params:
        """The scale of each band of rows [R, B], all columns of which are one block's."""
        rows = len(weight)
        if importance is not None:
            importance = np.broadcast_to(importance, weight.shape)
        scale = np.empty(rows, np.float32)
        # One by one, since sums over so many numbers depend on how many there are beside them.
        for first in range(0, rows, _SIZE):
            band = slice(first, first + _SIZE)
            some = None if importance is None else importance[band].reshape(1, -1)
            scale[band] = super()._fit(weight[band].reshape(1, -1), some).scale
        return FP8Params(scale)

    def numbers(self, tensor: QTensor) -> FloatNumbers:
        """See `Format.numbers`."""
        params = tensor.params
        assert isinstance(params, FP8Params)
        return FloatNumbers(E4M3, _SIZE, tensor.codes, params.scale.reshape(tensor.shape[0], -1))

    def take_over(self, numbers: Numbers) -> QTensor:
        """See `Format.take_over`; the rows begin with a band."""
        if not isinstance(numbers, FloatNumbers) or numbers.grid is not E4M3:
            raise UnlikeError("its numbers aren't E4M3")
        step = np.repeat(numbers.step, numbers.block // _SIZE, axis=1)
        if (step != np.repeat(step[::_SIZE], _SIZE, axis=0)[: len(step)]).any():
            raise FormatError(f"its scales aren't the same for {_SIZE} rows")
        return QTensor(self, numbers.codes.shape, numbers.codes, FP8Params(step.reshape(-1)))

    def pack(self, codes: Codes, params: FP8Params) -> Parts:
        """The arrays above, of rows that begin with a band."""
        scale = params.scale.reshape(len(codes), -1)[::_SIZE]
        return {"weight": codes, "weight_scale": np.ascontiguousarray(scale)}

    def unpack(
        self, parts: Mapping[str, npt.NDArray[Any]], shape: tuple[int, int]
    ) -> tuple[Codes, FP8Params]:
        """The inverse of `pack`."""
        scale = np.repeat(parts["weight_scale"], _SIZE, axis=0)[: shape[0]]
        return parts["weight"].view(np.uint8), FP8Params(scale.reshape(-1))

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Exact bytes of codes and scales."""
        rows, columns = prod(shape[:-1]), shape[-1]
        return rows * columns + 4 * -(-rows // _SIZE) * (columns // self.block_of(columns))


register(FP8BlockFormat())
