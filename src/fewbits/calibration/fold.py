"""Channels of a model whose scale may be moved from what produces them into what reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Fold:
    """Channels that may be rescaled.

    Attributes:
        producer: a parameter, or ``NAME#e`` for expert e of a stack: a norm's weight [C], or a matrix [N, K].
        bias: the bias beside it; empty where there is none.
        offset: what is added to a norm's weight before it multiplies.
        consumers: names of the maps that read the channels.
        rows: for each of the consumers' columns, the producer's row (or element) that makes it, int [K].
    """

    producer: str
    bias: str
    offset: float
    consumers: tuple[str, ...]
    rows: npt.NDArray[np.intp]

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "producer": self.producer, "bias": self.bias, "offset": self.offset,
            "consumers": list(self.consumers), "rows": self.rows.tolist(),
        }  # fmt: skip

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Fold:
        """The inverse of `as_data`."""
        rows = np.asarray(data["rows"], np.intp)
        return cls(data["producer"], data["bias"], float(data["offset"]), tuple(data["consumers"]), rows)
