"""The interface of an algorithm: how codes are chosen for one matrix, seen only through its format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from fewbits.calibration.statistics import Statistics
from fewbits.formats import Format, QTensor
from fewbits.formats.format import Floats, Parts
from fewbits.formats.stored_rows import StoredRows


class Algorithm(Protocol):
    """Quantizes one matrix.

    Attributes:
        name: as it stands in plans.
        rounds: whether it is the format's own rounding (`Format.quantize_rows`), with importance or without.
        needs_statistics: whether it looks at calibration statistics. One that doesn't is run without calibration, on
            rows in chunks of any size, and must give each row the same codes whatever is passed with it.
    """

    @property
    def name(self) -> str:
        """As it stands in plans."""

    @property
    def rounds(self) -> bool:
        """Whether it is the format's own rounding."""

    @property
    def needs_statistics(self) -> bool:
        """Whether it looks at calibration statistics."""

    def quantize(self, weight: Floats, fmt: Format[Any], statistics: Statistics | None = None) -> QTensor:
        """float32 [N, K] -> QTensor, deterministic; single-threaded, since tensors run side by side.

        Raises:
            PlanError: there are no statistics, and they are needed.
        """

    def quantize_rows(self, rows: StoredRows, fmt: Format[Any], importance: Floats | None = None) -> Parts:
        """Rows [N, K] as the container's arrays, without statistics; importance float32 [K] or [N, K] if it `rounds`.

        Raises:
            NotFiniteError: there are NaN or infinities among them.
            PlanError: there are no statistics, and they are needed.
        """

    def quantize_checked(
        self, weight: Floats, fmt: Format[Any], statistics: Statistics, effort: str = "balanced"
    ) -> Choice:
        """The result, unless importance-weighted rounding is better on held-out tokens: then that."""


@dataclass(frozen=True)
class Choice:
    """What was kept for one matrix, and why.

    Attributes:
        qtensor: the better result.
        algorithm: which one made it.
        held_out_loss: its predicted KL divergence on the held-out tokens, nats per token.
        tried: the algorithm that was to improve on the baseline.
        tried_loss: its predicted KL divergence there.
        baseline_loss: that of importance-weighted rounding.
    """

    qtensor: QTensor
    algorithm: str
    held_out_loss: float
    tried: str
    tried_loss: float
    baseline_loss: float
