"""Which linear maps have inputs with outliers, and what rounding these inputs to 8 bits costs.

An outlier makes the step of all other inputs of its token coarse. Where channels may be rescaled (`pipeline.folds`),
this is moved into the weights; what is left then is what a file with 8-bit activations loses there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fewbits.calibration.statistics import Statistics
from fewbits.checkpoint.checkpoint import LazyTensor
from fewbits.checkpoint.source import open_checkpoint
from fewbits.checkpoint.views import RowRange
from fewbits.export.exporter import OutputTensor
from fewbits.export.registry import get_exporter
from fewbits.formats.activation_grid import TOKEN, integer_grid
from fewbits.language_model.packages import require_models_extra
from fewbits.pipeline.calibrate import calibrate
from fewbits.pipeline.calibrated import Calibration, open_store, statistics_of
from fewbits.pipeline.folds import folded
from fewbits.pipeline.job import Settings
from fewbits.pipeline.statistics_rows import Segment, segment_statistics
from fewbits.planning.activation_prices import price_activations
from fewbits.progress import Progress, Silent

# A channel holds outliers if its RMS is so many times that of the median channel.
OUTLIER = 6.0
_SHOWN_CHANNELS = 4
_TARGET, _FORMAT = "compressed-tensors", "INT8_CHANNEL_SYM"
_TOKEN_INTEGERS = integer_grid(8, TOKEN)


@dataclass(frozen=True)
class MapOutliers:
    """Of one linear map.

    Attributes:
        name: of its weight.
        inputs: K, how many there are.
        largest: magnitude over all calibration tokens.
        rms: of all inputs, over sampled tokens.
        channels: those that hold outliers, largest first: number and RMS as a multiple of the median channel's.
        cost: predicted KL divergence in nats per token of rounding the inputs to 8 bits, a scale for each token.
        cost_rescaled: the same once channels are rescaled for it.
    """

    name: str
    inputs: int
    largest: float
    rms: float
    channels: tuple[tuple[int, float], ...]
    cost: float
    cost_rescaled: float

    @property
    def ratio(self) -> float:
        """The largest magnitude against the RMS; 0 where all inputs are."""
        return self.largest / self.rms if self.rms > 0 else 0.0


@dataclass(frozen=True)
class Outliers:
    """What `outliers` found.

    Attributes:
        model: its path.
        calibration: name of the text.
        tokens: of it that were read.
        maps: in the model's order.
    """

    model: str
    calibration: str
    tokens: int
    maps: tuple[MapOutliers, ...]

    @property
    def cost(self) -> float:
        """Of all maps together, nats per token."""
        return sum(m.cost for m in self.maps)

    @property
    def cost_rescaled(self) -> float:
        """Of all maps together once channels are rescaled."""
        return sum(m.cost_rescaled for m in self.maps)

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        maps = [
            {
                "name": m.name, "inputs": m.inputs, "largest": m.largest, "rms": m.rms, "ratio": m.ratio,
                "channels": [{"channel": c, "times_median": t} for c, t in m.channels],
                "cost": m.cost, "cost_rescaled": m.cost_rescaled,
            }
            for m in self.maps
        ]  # fmt: skip
        return {
            "model": self.model, "calibration": self.calibration, "tokens": self.tokens, "maps": maps,
            "cost": self.cost, "cost_rescaled": self.cost_rescaled,
        }  # fmt: skip

    def describe(self) -> str:
        """A table for people, a line for each map."""
        width = max((len(m.name) for m in self.maps), default=0)
        head = (
            f"{'map':<{width}}  largest/RMS  8-bit cost   rescaled  channels with outliers (times the median)"
        )
        lines = [head]
        for m in self.maps:
            shown = ", ".join(f"{c} ({t:.0f})" for c, t in m.channels[:_SHOWN_CHANNELS])
            more = len(m.channels) - _SHOWN_CHANNELS
            channels = f"{shown} and {more} more" if more > 0 else shown
            lines.append(
                f"{m.name:<{width}}  {m.ratio:>11.1f}  {m.cost:>10.6f} {m.cost_rescaled:>10.6f}  {channels}".rstrip()
            )
        lines.append(
            f"together, nats per token: {self.cost:.5f}, {self.cost_rescaled:.5f} with rescaled channels "
            f"(predicted on {self.tokens} tokens of {self.calibration})"
        )
        return "\n".join(lines)


def outliers(
    source: str | Path,
    calibration: str | Path | None = None,
    *,
    memory: str | int = "4GB",
    threads: int | None = None,
    progress: Progress | None = None,
) -> Outliers:
    """Look for outliers in the inputs of a model's linear maps, on a calibration text.

    Args:
        source: Hugging Face directory, hub id, or GGUF file.
        calibration: a text, as for `quantize`; None for the default.
        memory: bytes that the run may hold.
        threads: default all cores that this process may use.
        progress: receives what is being done.

    Raises:
        FewbitsError: the model or the text can't be calibrated with, or a package is missing.
    """
    require_models_extra("looking for outliers")
    settings = Settings(
        _TARGET, "balanced", calibration=calibration, memory=memory, threads=threads, fold=True
    )
    checkpoint, exporter = open_checkpoint(source), get_exporter(_TARGET)
    tensors, metadata = exporter.tensors(checkpoint), exporter.metadata(checkpoint)
    known = calibrate(checkpoint, exporter, tensors, metadata, settings, progress or Silent(), _FORMAT)
    return Outliers(
        model=str(checkpoint.path),
        calibration=known.name,
        tokens=int(known.tokens.blocks.size),
        maps=tuple(_maps(tensors, known)),
    )


def _maps(tensors: Iterable[OutputTensor], calibration: Calibration) -> Iterable[MapOutliers]:
    linear = [t for t in tensors if t.quantizable and t.name in calibration.segments]
    store = open_store(calibration.material.store)
    for before, after in zip(linear, folded(linear, calibration.folds), strict=True):
        for segment in calibration.segments[before.name]:
            stop = segment.start + len(segment.rows)
            own = segment_statistics(store, segment, segment.start, stop)
            moved = statistics_of(calibration.material, before.name, segment, segment.start, stop)
            if own.sample is not None and own.restore is not None and len(own.sample):
                costs = (_cost(t.source, segment, s) for t, s in ((before, own), (after, moved)))
                yield _of_map(before.name, own, *costs)


def _cost(source: LazyTensor, segment: Segment, statistics: Statistics) -> float:
    rows = RowRange(source, segment.start, segment.start + len(segment.rows))
    return price_activations(rows, statistics, [_TOKEN_INTEGERS])[_TOKEN_INTEGERS]


def _of_map(name: str, statistics: Statistics, cost: float, rescaled: float) -> MapOutliers:
    assert statistics.sample is not None
    assert statistics.restore is not None
    assert statistics.largest is not None
    x = statistics.sample.astype(np.float32) * statistics.restore[:, None]
    powers = np.square(x).mean(axis=0, dtype=np.float64)
    sizes = np.sqrt(powers)
    median = float(np.median(sizes))
    order = np.argsort(-sizes, kind="stable")
    loud = [int(c) for c in order if median > 0 and sizes[c] >= OUTLIER * median]
    return MapOutliers(
        name=name,
        inputs=x.shape[1],
        largest=float(statistics.largest.max()),
        rms=float(np.sqrt(powers.mean())),
        channels=tuple((c, float(sizes[c] / median)) for c in loud),
        cost=cost,
        cost_rescaled=rescaled,
    )
