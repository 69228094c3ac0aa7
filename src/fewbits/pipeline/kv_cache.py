"""Scales of a quantized key-value cache, from what calibration saw of keys and values.

Statistics are of the live model; the container may name its modules otherwise, and channels may have been rescaled on
their way into it (`pipeline/folds.py`). How its tensors relate to the live model's parameters tells both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fewbits.calibration.kv_statistics import CacheStatistics, ChannelSource
from fewbits.checkpoint.checkpoint import Floats
from fewbits.errors import CalibrationError
from fewbits.export.exporter import Exporter, OutputTensor
from fewbits.export.kv_cache import FP8_PER_HEAD, cache_scales
from fewbits.pipeline.calibrated import Calibration, open_store
from fewbits.pipeline.folds import Folds
from fewbits.pipeline.statistics_rows import Segment, vector_places


def cache_scale_tensors(
    name: str,
    calibration: Calibration,
    exporter: Exporter,
    tensors: Sequence[OutputTensor],
    metadata: Mapping[str, Any],
) -> list[OutputTensor]:
    """The container's tensors of scales for the keys and the values of every layer.

    Args:
        name: of the cache, one of the exporter's.
        calibration: of the model.
        exporter: writes the container.
        tensors: what it holds besides.
        metadata: what it says.

    Raises:
        CalibrationError: calibration saw no keys and values, or what isn't finite.
    """
    store = open_store(calibration.material.store)
    modules = store.caches()
    if not modules:
        raise CalibrationError(
            "no keys and values were seen, so that a cache of them can't have scales",
            found="a model without attention, or whose blocks get no cache",
            action="Leave out --kv-cache",
        )
    blocks = {t.name: t.block for t in tensors}
    made = []
    for module in modules:
        found = store.load_cache(module)
        factors = [
            _factors(source, calibration, exporter, tensors, metadata)
            for source in (found.key_source, found.value_source)
        ]
        place, block = _published(module, calibration.segments, blocks)
        for part, scales in _scales(found.rescaled(*factors), module, per_head=name == FP8_PER_HEAD).items():
            made.append(exporter.cache_scale(place, part, scales, block))
    return made


def _scales(found: CacheStatistics, module: str, *, per_head: bool) -> dict[str, Floats]:
    scales = {}
    for part, peaks in (("k", found.key_peaks), ("v", found.value_peaks)):
        if not np.isfinite(peaks).all():
            raise CalibrationError(f"{module} makes keys or values that aren't finite")
        scales[part] = cache_scales(peaks, per_head=per_head)
    return scales


def _factors(
    source: ChannelSource | None,
    calibration: Calibration,
    exporter: Exporter,
    tensors: Sequence[OutputTensor],
    metadata: Mapping[str, Any],
) -> Floats | None:
    """What folds multiply the channels with, float32 [H * D]; None for nothing."""
    if source is None or not calibration.folds:
        return None
    factors = _of_matrix(source, calibration.segments, calibration.folds)
    if factors is None:
        place = vector_places(exporter, tensors, metadata, {source.parameter}).get(source.parameter)
        fold = calibration.folds.get(place.tensor) if place else None
        if place is None or fold is None or fold.rows is None:
            return None
        factors = fold.rows[place.positions]
    return factors[source.rows]


def _of_matrix(
    source: ChannelSource, segments: Mapping[str, Sequence[Segment]], folds: Folds
) -> Floats | None:
    """Factors on the rows of a live matrix, in its order; None if no tensor of the container has them."""
    pieces: list[tuple[Segment, Floats]] = []
    for tensor, runs in segments.items():
        rows = folds[tensor].rows if tensor in folds else None
        if rows is not None:
            pieces += [
                (run, rows[run.start : run.start + len(run.rows)])
                for run in runs
                if run.parameter == source.parameter
            ]
    if not pieces:
        return None
    factors = np.ones(1 + max(int(run.rows.max()) for run, _ in pieces), np.float32)
    for run, rows in pieces:
        factors[run.rows] = rows
    return factors


def _published(
    module: str, segments: Mapping[str, Sequence[Segment]], blocks: Mapping[str, int | None]
) -> tuple[str, int | None]:
    """The container's name of a live module, by that of a parameter in it, and its block."""
    for tensor, runs in segments.items():
        for run in runs:
            parameter = run.parameter.partition("#")[0]
            rest = parameter.removeprefix(f"{module}.")
            if rest != parameter and tensor.endswith(f".{rest}"):
                return tensor.removesuffix(f".{rest}"), blocks[tensor]
    return module, None
