"""How ONNX Runtime rounds the inputs of quantized maps: to 8 bits, in the blocks of the weights.

    d = max|x| / 127, float32;  value d * round(x / d)

Source: ONNX Runtime, MatMulNBits with accuracy_level 4 on CPUs; found by experiment to differ from this in nothing but
the order of sums.
"""

from __future__ import annotations

from collections.abc import Mapping

from fewbits.formats.nbits import NBITS_NAMES
from fewbits.formats.qdq import ACTIVATION_BLOCK as QDQ_BLOCK

ACTIVATION_BLOCK: Mapping[str, int] = {**NBITS_NAMES, "QDQ8": QDQ_BLOCK}
