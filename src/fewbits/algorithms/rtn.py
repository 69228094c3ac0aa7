"""Round to nearest: every block's parameters fitted by the format's own search, codes rounded to the nearest.

Independent of everything outside a block, so rows may be processed in any chunks with the same result, if these end
where the format's bands of rows do.
"""

from __future__ import annotations

from typing import Any

from fewbits.formats import Format, QTensor
from fewbits.formats.format import Floats, fitted

NAME = "rtn"


def quantize(weight: Floats, fmt: Format[Any], importance: Floats | None = None) -> QTensor:
    """Fit and round a matrix.

    Args:
        weight: float32 [N, K]; the format's block divides K.
        fmt: already prepared for the whole tensor where it has tensor-wide parameters.
        importance: float32 [K], the mean square of each input column, or [N, K] where rows differ in it; or None.

    Returns:
        QTensor of shape [N, K].
    """
    return fitted(fmt, weight, importance)
