"""Rounding to nearest with scales weighted by each column's importance, what an importance matrix gives."""

from __future__ import annotations

from typing import Any

from fewbits.algorithms import rtn
from fewbits.calibration.statistics import Statistics
from fewbits.formats import Format, QTensor
from fewbits.formats.format import Floats

NAME = "imatrix"


def quantize(weight: Floats, fmt: Format[Any], statistics: Statistics) -> QTensor:
    """Fit a matrix [N, K] weighted by the diagonal of the second moment, and round it."""
    return rtn.quantize(weight, fmt, statistics.importance())
