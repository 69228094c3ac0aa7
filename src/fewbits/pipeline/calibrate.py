"""What the calibrated efforts do before a plan: gather statistics, and price every format of every tensor."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from fewbits.algorithms.registry import get_algorithm
from fewbits.calibration.gather import statistics_for
from fewbits.calibration.statistics import Statistics
from fewbits.calibration.text import calibration_tokens
from fewbits.checkpoint.checkpoint import Checkpoint, Floats, LazyTensor
from fewbits.checkpoint.dtypes import PLAIN
from fewbits.checkpoint.views import RowRange
from fewbits.export.exporter import Exporter, OutputTensor
from fewbits.export.registry import get_exporter
from fewbits.formats import get_format
from fewbits.pipeline.calibrated import (
    Calibration,
    Material,
    by_workers,
    open_store,
    open_tensors,
    statistics_of,
    worker_group,
    worker_pool,
)
from fewbits.pipeline.folds import (
    Folds,
    PlacedFold,
    load_folds,
    placed_folds,
    save_folds,
    scales_of,
    scales_of_its_own,
    tensor_folds,
)
from fewbits.pipeline.job import Settings
from fewbits.pipeline.statistics_rows import Segment, statistics_rows
from fewbits.planning.activation_prices import price_activations
from fewbits.planning.joint_gain import joint_gain
from fewbits.planning.options import holds, useful_formats
from fewbits.planning.prices import measured_formats, price_plain, price_tensor, sample_tensor
from fewbits.progress import Progress
from fewbits.version import __version__

# Tokens of calibration text, held-out eighth included. More lower the loss by a few per cent: docs/log.md.
TOKENS = {"balanced": 24576, "best": 131072}
PRICING_ALGORITHM = "gptq"

Prices = dict[str, dict[str, float]]
# Tensor, formats to price it in, and one that it must get.
_Request = tuple[str, Sequence[str], str | None]


def calibrate(
    checkpoint: Checkpoint,
    exporter: Exporter,
    tensors: list[OutputTensor],
    metadata: Mapping[str, Any],
    settings: Settings,
    progress: Progress,
    format_name: str = "",
) -> Calibration:
    """Gather the statistics that an effort needs, or take them from the cache.

    `format_name` is the format that most maps will have, "" where it isn't known yet: channels are rescaled for it.

    Raises:
        FewbitsError: the text or the model can't be calibrated with, or a package is missing.
    """
    read = calibration_tokens(checkpoint, settings.calibration, TOKENS[settings.effort], seed=settings.seed)
    store = statistics_for(checkpoint, read, settings.memory_bytes, progress)
    about = store.description
    segments = statistics_rows(exporter, tensors, metadata, set(store.names()))
    material = Material(str(checkpoint.path), settings.to.lower(), str(store.folder))
    folds: Folds = {}
    if settings.fold:
        format_name = format_name if scales_of_its_own(format_name, exporter) else ""
        kind = f"{settings.to.lower()}-{format_name}" if format_name else settings.to.lower()
        file = store.folder / f"folds-{kind}-{__version__}.npz"
        if not file.is_file():
            choose = partial(_scales, material, format_name=format_name)
            save_folds(file, _choose_folds(material, exporter, tensors, metadata, settings, choose, progress))
        folds = load_folds(file)
        material = replace(material, folds=str(file))
    return Calibration(
        material,
        segments,
        str(about["name"]),
        str(about["tokens"]),
        read,
        store.starved(),
        folds,
        read.warnings,
    )


def with_input_scales(
    tensors: Sequence[OutputTensor], calibration: Calibration, exporter: Exporter, rule: str
) -> list[OutputTensor]:
    """The tensors with what finds scales of their inputs by a rule: the same for all that have the same inputs."""
    first: dict[str, str] = {}

    @cache
    def scale(tensor: str, format_name: str) -> float:
        segment = calibration.segments[tensor][0]
        stop = segment.start + len(segment.rows)
        statistics = statistics_of(calibration.material, tensor, segment, segment.start, stop)
        if statistics.largest is None:
            return exporter.input_scale(format_name, statistics, rule)
        # Maps that read the same have exactly the same largest inputs.
        key = f"{format_name} {hashlib.sha256(statistics.largest.tobytes()).hexdigest()}"
        other = first.setdefault(key, tensor)
        if other != tensor:
            return scale(other, format_name)
        return exporter.input_scale(format_name, statistics, rule)

    return [
        replace(t, input_scale=partial(scale, t.name)) if t.name in calibration.segments else t
        for t in tensors
    ]


def _choose_folds(
    material: Material,
    exporter: Exporter,
    tensors: list[OutputTensor],
    metadata: Mapping[str, Any],
    settings: Settings,
    choose: Callable[[PlacedFold], Floats],
    progress: Progress,
) -> Folds:
    """The scales of all channels that may be rescaled, chosen in worker processes."""
    placed = placed_folds(exporter, tensors, metadata, open_store(material.store))
    progress.stage("scaling channels", len(placed), "folds")
    found = []
    group = worker_group(tensors, settings.cores, settings.memory_bytes)
    with worker_pool(group.workers, group.threads) as pool:
        for fold, future in [(fold, pool.submit(choose, fold)) for fold in placed]:
            found.append((fold, future.result()))
            progress.advance(1)
    return tensor_folds(found, {t.name: t for t in tensors})


def _scales(material: Material, placed: PlacedFold, format_name: str) -> Floats:
    """Runs in a worker."""
    exporter = get_exporter(material.target)
    return scales_of(placed, open_tensors(material), open_store(material.store), exporter, format_name)


def prices(
    calibration: Calibration,
    exporter: Exporter,
    tensors: Sequence[OutputTensor],
    settings: Settings,
    near: float | None,
    progress: Progress,
    pinned: Mapping[str, str] | None = None,
) -> Prices:
    """Container tensor name -> format -> predicted KL divergence in nats per token; kept beside the statistics.

    Tensors without statistics have no entry.
    `near` is the bits per weight that a plan will be about: formats far from it are priced less exactly, which is
    quicker; None prices all alike.
    `pinned` are tensors with a format that they must get: it has a price, worth one or not.
    """
    near = None if near is None else float(round(near))
    about = "all" if near is None else f"{near:.0f}"
    folder = Path(calibration.material.store)
    known = [t for t in tensors if t.quantizable and t.name in calibration.segments]
    useful = {t.name: useful_formats(t, exporter) for t in known}
    kind = f"{exporter.name}-folded" if calibration.folds else exporter.name
    file = folder / f"prices-{kind}-{about}-{__version__}.json"
    found = _cached(file)
    if not found:
        tasks: list[_Request] = [(name, names, None) for name, names in useful.items()]
        found = dict(zip(useful, _measure(calibration, known, tasks, near, settings, progress), strict=True))
        _keep(file, found)
    # Apart, so that what is pinned in one run has no influence on another's prices.
    file = file.with_name(f"pinned-{file.name}")
    also = _cached(file)
    names = {t.name: name for t in known if (name := (pinned or {}).get(t.name)) and holds(t, name, exporter)}
    todo = {t: f for t, f in names.items() if f not in found[t] and f not in also.get(t, {})}
    if todo:
        tasks = [(tensor, useful[tensor], name) for tensor, name in todo.items()]
        for tensor, price in zip(
            todo, _measure(calibration, known, tasks, near, settings, progress), strict=True
        ):
            also.setdefault(tensor, {})[todo[tensor]] = price[todo[tensor]]
        _keep(file, also)
    for tensor, name in names.items():
        if name not in found[tensor]:
            found[tensor] = {**found[tensor], name: also[tensor][name]}
    return found


def _cached(file: Path) -> Prices:
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def _keep(file: Path, found: Prices) -> None:
    temporary = file.with_suffix(".part")
    temporary.write_text(json.dumps(found), encoding="utf-8")
    temporary.replace(file)


def _measure(
    calibration: Calibration,
    tensors: Iterable[OutputTensor],
    tasks: Sequence[_Request],
    near: float | None,
    settings: Settings,
    progress: Progress,
) -> list[dict[str, float]]:
    """The prices of (tensor, formats, format that it must get) in worker processes."""
    progress.stage("pricing", len(tasks), "tensors")
    material, found = calibration.material, {}
    wanted = {name: (formats, pinned) for name, formats, pinned in tasks}
    priced = [t for t in tensors if t.name in wanted]
    for group in by_workers(priced, settings.cores, settings.memory_bytes):
        with worker_pool(group.workers, group.threads) as pool:
            futures = {}
            for name in (t.name for t in group.tensors):
                formats, pinned = wanted[name]
                segments = calibration.segments[name]
                futures[name] = pool.submit(_price, material, name, segments, formats, near, pinned)
            for name, future in futures.items():
                found[name] = future.result()
                progress.advance(1, name)
    return [found[name] for name, *_ in tasks]


def _price(
    material: Material,
    name: str,
    segments: Sequence[Segment],
    formats: Sequence[str],
    near: float | None,
    pinned: str | None,
) -> dict[str, float]:
    """The prices of one tensor: those of its segments, added. Runs in a worker."""
    tensor = open_tensors(material)[name]
    grid_of = get_exporter(material.target).activation_grid
    total: dict[str, float] = {}
    for segment in segments:
        start, stop = segment.start, segment.start + len(segment.rows)
        statistics = statistics_of(material, name, segment, start, stop)
        source = RowRange(tensor.source, start, stop)
        prices = _price_weights(source, statistics, formats, near, pinned)
        gain = joint_gain(statistics)
        grids = {name: grid for name in prices if (grid := grid_of(name))}
        rounding = price_activations(source, statistics, grids.values())
        for fmt, price in prices.items():
            total[fmt] = total.get(fmt, 0.0) + gain * price + (rounding[grids[fmt]] if fmt in grids else 0.0)
    return total


def _price_weights(
    source: LazyTensor,
    statistics: Statistics,
    names: Sequence[str],
    near: float | None,
    pinned: str | None,
) -> dict[str, float]:
    weight, sample = sample_tensor(source, statistics)
    if pinned and pinned in PLAIN:
        return {pinned: price_plain(weight, sample, statistics, pinned)}
    algorithm = get_algorithm(PRICING_ALGORITHM).quantize
    formats = [get_format(name) for name in names]
    measured = measured_formats(formats, near)
    if pinned:
        formats.append(get_format(pinned))
        measured.append(formats[-1])
    return price_tensor(weight, sample, statistics, formats, algorithm, measured=measured)
