"""What the calibrated efforts do before a plan: gather statistics, and price every format of every tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewbits.algorithms.registry import get_algorithm
from fewbits.calibration.gather import statistics_for
from fewbits.calibration.store import StatisticsStore
from fewbits.checkpoint.checkpoint import Checkpoint
from fewbits.checkpoint.views import RowRange
from fewbits.export.exporter import Exporter, OutputTensor
from fewbits.export.gguf.container import plain as plain_value
from fewbits.formats import get_format
from fewbits.pipeline.calibrated import Calibration, Material, open_store, open_tensors, worker_pool
from fewbits.pipeline.job import Settings
from fewbits.pipeline.statistics_rows import Segment, segment_statistics, statistics_rows
from fewbits.planning.options import useful_formats
from fewbits.planning.prices import measured_formats, price_tensor, sample_tensor
from fewbits.progress import Progress
from fewbits.version import __version__

# Tokens of calibration text, held-out eighth included. Twice as many lower the loss by a few per cent more.
TOKENS = {"balanced": 32768, "best": 65536}
PRICING_ALGORITHM = "gptq"

Prices = dict[str, dict[str, float]]


def calibrate(
    checkpoint: Checkpoint,
    exporter: Exporter,
    tensors: list[OutputTensor],
    metadata: Mapping[str, Any],
    settings: Settings,
    progress: Progress,
) -> Calibration:
    """Gather the statistics that an effort needs, or take them from the cache.

    Raises:
        FewbitsError: the text or the model can't be calibrated with, or a package is missing.
    """
    store = statistics_for(
        checkpoint,
        settings.calibration,
        TOKENS[settings.effort],
        settings.seed,
        settings.memory_bytes,
        progress,
    )
    about = store.description
    plain = {key: plain_value(value) for key, value in metadata.items()}
    segments = statistics_rows(checkpoint, tensors, plain, set(store.names()))
    material = Material(str(checkpoint.path), exporter.name, str(store.folder))
    return Calibration(material, segments, str(about["name"]), str(about["tokens"]), store.starved())


def prices(
    calibration: Calibration,
    exporter: Exporter,
    tensors: Sequence[OutputTensor],
    settings: Settings,
    near: float | None,
    progress: Progress,
) -> Prices:
    """Container tensor name -> format -> predicted KL divergence in nats per token; kept beside the statistics.

    Tensors without statistics have no entry.
    `near` is the bits per weight that a plan will be about: formats far from it are priced less exactly, which is
    quicker; None prices all alike.
    """
    near = None if near is None else float(round(near))
    about = "all" if near is None else f"{near:.0f}"
    cached = Path(calibration.material.store) / f"prices-{exporter.name}-{about}-{__version__}.json"
    if cached.is_file():
        return dict(json.loads(cached.read_text(encoding="utf-8")))
    todo = [t for t in tensors if t.quantizable and t.name in calibration.segments]
    progress.stage("pricing", len(todo), "tensors")
    found: Prices = {}
    material, segments = calibration.material, calibration.segments
    with worker_pool(settings.cores) as pool:
        futures = {
            t.name: pool.submit(_price, material, t.name, segments[t.name], useful_formats(t, exporter), near)
            for t in todo
        }
        for name, future in futures.items():
            found[name] = future.result()
            progress.advance(1, name)
    temporary = cached.with_suffix(".part")
    temporary.write_text(json.dumps(found), encoding="utf-8")
    temporary.replace(cached)
    return found


def _price(
    material: Material, name: str, segments: Sequence[Segment], formats: Sequence[str], near: float | None
) -> dict[str, float]:
    """The prices of one tensor: those of its segments, added. Runs in a worker."""
    tensor = open_tensors(material.source, material.target)[name]
    store = open_store(material.store)
    total: dict[str, float] = {}
    for segment in segments:
        for fmt, price in _price_segment(tensor, store, segment, formats, near).items():
            total[fmt] = total.get(fmt, 0.0) + price
    return total


def _price_segment(
    tensor: OutputTensor, store: StatisticsStore, segment: Segment, names: Sequence[str], near: float | None
) -> dict[str, float]:
    stop = segment.start + len(segment.rows)
    statistics = segment_statistics(store, segment, segment.start, stop)
    weight, sample = sample_tensor(RowRange(tensor.source, segment.start, stop), statistics)
    algorithm = get_algorithm(PRICING_ALGORITHM).quantize
    formats = [get_format(name) for name in names]
    measured = measured_formats(formats, near)
    return price_tensor(weight, sample, statistics, formats, algorithm, measured=measured)
