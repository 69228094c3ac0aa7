"""Rescaling channels of a model on its way into a container, so that rounding costs less.

Folds are found (`calibration.find_folds`) under the live model's names; here they become factors on rows and columns
of the container's tensors, and the statistics of those follow. The tensors are then those of a model that computes
the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fewbits.algorithms.channel_scales import Reader, channel_scales
from fewbits.algorithms.peak_scales import Blocks, PeakReader, peak_scales, share_of_peak
from fewbits.calibration.fold import Fold
from fewbits.calibration.statistics import Statistics
from fewbits.calibration.store import StatisticsStore
from fewbits.checkpoint.checkpoint import Floats, LazyTensor
from fewbits.checkpoint.dtypes import PLAIN, decode_plain, encode_plain
from fewbits.checkpoint.views import Rescaled, RowRange
from fewbits.export.exporter import Exporter, OutputTensor
from fewbits.formats import get_format
from fewbits.formats.activation_grid import TOKEN, ActivationGrid
from fewbits.formats.format import Format
from fewbits.pipeline.statistics_rows import Segment, VectorPlace, statistics_rows, vector_places
from fewbits.planning.activation_prices import column_losses

# Rows of each map that speak for all of them, in runs that lie together in the file.
_ROWS, _RUN = 256, 8
# Where the largest weight of whole rows counts, fewer do.
_PEAK_ROWS = 64


@dataclass(frozen=True)
class TensorFold:
    """Factors on one tensor of the container.

    Attributes:
        rows: float32 [N], of vectors [K]; None for ones.
        columns: pairs of first row and factors float32 [K] from it on, rising from row 0; () for ones.
        offset: what is added to a vector before it is multiplied and taken away afterwards.
    """

    rows: Floats | None = None
    columns: tuple[tuple[int, Floats], ...] = ()
    offset: float = 0.0

    def statistics(self, statistics: Statistics, start: int, stop: int) -> Statistics:
        """Of rows start … stop, which belong to one map, as they are after the fold."""
        rows = None if self.rows is None else self.rows[start:stop]
        factors = [columns for first, columns in self.columns if first <= start]
        columns = factors[-1] if factors else np.ones(len(statistics.second_moment), np.float32)
        return statistics.rescaled(columns, rows)


Folds = Mapping[str, TensorFold]


def folded(tensors: Iterable[OutputTensor], folds: Folds) -> list[OutputTensor]:
    """The container's tensors after the folds."""
    return [
        replace(t, source=Rescaled(t.source, f.rows, f.columns, f.offset)) if (f := folds.get(t.name)) else t
        for t in tensors
    ]


@dataclass(frozen=True)
class PlacedFold:
    """A fold where the container has its parts: what a worker needs to choose its scales.

    Attributes:
        channels: which channel each column of the readers reads, int [K].
        readers: segments of the container's tensors that read the channels, and of which there are statistics.
        blind: the same without statistics.
        vectors: (tensor, positions of the channels, offset) of norms and biases that produce them.
        rows: (tensor, its rows, their channels) of matrices that produce them.
    """

    channels: npt.NDArray[np.intp]
    readers: tuple[tuple[str, Segment], ...]
    blind: tuple[tuple[str, Segment], ...]
    vectors: tuple[tuple[str, npt.NDArray[np.intp], float], ...]
    rows: tuple[tuple[str, npt.NDArray[np.intp], npt.NDArray[np.intp]], ...]


def placed_folds(
    exporter: Exporter,
    tensors: Sequence[OutputTensor],
    metadata: Mapping[str, Any],
    store: StatisticsStore,
) -> list[PlacedFold]:
    """The folds of a model that its container can hold.

    One is left out if the container lacks a part of it, or holds a part that is quantized already.
    """
    folds = [Fold.from_data(data) for name in store.folded() for data in store.folds(name)]
    maps = {name for fold in folds for name in (*fold.consumers, fold.producer)}
    vectors = {name for fold in folds for name in (fold.producer, fold.bias) if name}
    by_map: dict[str, list[tuple[str, Segment]]] = {}
    for name, segments in statistics_rows(exporter, list(tensors), metadata, maps).items():
        for segment in segments:
            by_map.setdefault(segment.parameter, []).append((name, segment))
    places = vector_places(exporter, tensors, metadata, vectors)
    known = set(store.names())
    by_name = {t.name: t for t in tensors}
    found = [_placed(fold, by_map, places, known) for fold in folds]
    return [p for p in found if p is not None and all(_floating(by_name[name]) for name in _touched(p))]


def _placed(
    fold: Fold,
    by_map: Mapping[str, Sequence[tuple[str, Segment]]],
    places: Mapping[str, VectorPlace],
    known: set[str],
) -> PlacedFold | None:
    used, channels = np.unique(fold.rows, return_inverse=True)
    if any(name not in by_map for name in fold.consumers):
        return None
    segments = [pair for name in fold.consumers for pair in by_map[name]]
    vectors = []
    for parameter, offset in ((fold.producer, fold.offset), (fold.bias, 0.0)):
        if parameter in places:
            place = places[parameter]
            vectors.append((place.tensor, place.positions[used], offset + place.shift))
        elif parameter and parameter == fold.bias:
            return None
    rows = []
    for tensor, segment in by_map.get(fold.producer, ()):
        chosen = np.flatnonzero(np.isin(segment.rows, used))
        rows.append((tensor, segment.start + chosen, np.searchsorted(used, segment.rows[chosen])))
    if fold.producer not in places and sum(len(r) for _, r, _ in rows) != len(used):
        return None
    return PlacedFold(
        channels,
        tuple((name, s) for name, s in segments if s.parameter in known),
        tuple((name, s) for name, s in segments if s.parameter not in known),
        tuple(vectors),
        tuple(rows),
    )


def _touched(placed: PlacedFold) -> set[str]:
    return {name for part in (placed.readers, placed.blind, placed.vectors, placed.rows) for name, *_ in part}


def _floating(tensor: OutputTensor) -> bool:
    return tensor.source.dtype in PLAIN


def scales_of_its_own(format_name: str, exporter: Exporter) -> bool:
    """Whether channels are rescaled for this format alone: where a scale is for a row, or inputs are rounded coarsely.

    All others are much alike, and have the scales of what the container mostly holds.
    """
    if format_name not in exporter.formats:
        return False
    grid = exporter.activation_grid(format_name)
    coarse = grid is not None and (grid.block == TOKEN or grid.coarse)
    return coarse or get_format(format_name).block == 0


def scales_of(
    placed: PlacedFold,
    tensors: Mapping[str, OutputTensor],
    store: StatisticsStore,
    exporter: Exporter,
    format_name: str = "",
) -> Floats:
    """The scales of a fold's channels, float32 [C]: the readers' columns are to be multiplied with them.

    `format_name` is one with `scales_of_its_own`, or "".
    """
    if not placed.readers:
        return np.ones(int(placed.channels.max()) + 1, np.float32)
    if format_name:
        grid = exporter.activation_grid(format_name)
        return _by_peaks(placed, tensors, store, get_format(format_name), grid)
    width = len(placed.channels)
    fmt = get_format(exporter.default_format)
    block = min((b for name in exporter.candidates if (b := exporter.activation_block(name))), default=0)
    group = gcd(fmt.group or fmt.block or width, width)
    readers = [
        Reader(*_some_rows(tensors[name].source, segment, statistics, _ROWS), statistics)
        for name, segment in placed.readers
        for statistics in [store.load(segment.parameter)]
    ]
    return channel_scales(readers, placed.channels, group, block if block and width % block == 0 else 0)


def _by_peaks(
    placed: PlacedFold,
    tensors: Mapping[str, OutputTensor],
    store: StatisticsStore,
    fmt: Format[Any],
    grid: ActivationGrid | None,
) -> Floats:
    width = len(placed.channels)
    weights = Blocks(gcd(fmt.group or fmt.block or width, width), share_of_peak(fmt.name))
    activations = Blocks(0, 0.0)
    if grid is not None:
        size = width if grid.block == TOKEN else grid.block
        activations = Blocks(size if width % size == 0 else 0, grid.share_of_peak)
    readers = []
    for name, segment in placed.readers:
        source, statistics = tensors[name].source, store.load(segment.parameter)
        rows = RowRange(source, segment.start, segment.start + len(segment.rows))
        costs = column_losses(rows, statistics.of_rows(segment.rows))
        chosen = _some_rows(source, segment, statistics, _PEAK_ROWS)
        readers.append(PeakReader(*chosen, costs, statistics))
    return peak_scales(readers, placed.channels, weights, activations)


def _some_rows(
    source: LazyTensor, segment: Segment, statistics: Statistics, wanted: int
) -> tuple[Floats, Floats]:
    """About so many rows of a map, float32 [n, K], and their importance float32 [n], to stand for all."""
    count = len(segment.rows)
    runs = max(1, min(wanted, count) // _RUN)
    starts = np.linspace(0, max(count - _RUN, 0), runs).astype(int).tolist()
    spans = [(start, min(start + _RUN, count)) for start in dict.fromkeys(starts)]
    weight = np.concatenate([source.rows(segment.start + a, segment.start + b) for a, b in spans])
    chosen = np.concatenate([segment.rows[a:b] for a, b in spans])
    importance = statistics.row_importance[chosen] * np.float32(count / len(chosen))
    return weight, importance


def tensor_folds(
    found: Iterable[tuple[PlacedFold, Floats]], tensors: Mapping[str, OutputTensor]
) -> dict[str, TensorFold]:
    """Factors on every tensor of the container that a fold touches.

    A norm is rounded to what the container holds it in; its readers get the factors that undo just that.
    """
    rows: dict[str, Floats] = {}
    offsets: dict[str, float] = {}
    columns: dict[str, dict[int, tuple[int, Floats]]] = {}
    for placed, wanted in found:
        scales = _representable(placed, wanted, tensors)
        for name, positions, offset in placed.vectors:
            factors = rows.setdefault(name, np.ones(tensors[name].shape[-1], np.float32))
            factors[positions] /= scales
            offsets[name] = offset
        for name, places, channels in placed.rows:
            factors = rows.setdefault(name, np.ones(tensors[name].source.matrix[0], np.float32))
            factors[places] /= scales[channels]
        for name, segment in (*placed.readers, *placed.blind):
            spans = columns.setdefault(name, {})
            _, before = spans.get(segment.start, (0, np.float32(1)))
            spans[segment.start] = (segment.start + len(segment.rows), before * scales[placed.channels])
    return {
        name: TensorFold(
            rows.get(name),
            _gapless(columns.get(name, {}), tensors[name].source.matrix),
            offsets.get(name, 0.0),
        )
        for name in sorted({*rows, *columns})
    }


def _representable(placed: PlacedFold, scales: Floats, tensors: Mapping[str, OutputTensor]) -> Floats:
    """The scales that remain when norms are rounded to their dtype; 1 where a norm is zero."""
    for name, positions, offset in placed.vectors:
        tensor = tensors[name]
        if placed.rows or tensor.plain == "F32":
            continue
        gain = tensor.source.read().astype(np.float64)[positions] + offset
        wanted = (gain / scales - offset).astype(np.float32)
        kept = decode_plain(tensor.plain, encode_plain(tensor.plain, wanted[None]).reshape(-1)) + offset
        fits = (gain != 0) & (kept != 0)
        scales = np.divide(gain, kept, out=np.ones_like(gain), where=fits).astype(np.float32)
    return scales


def _gapless(
    spans: Mapping[int, tuple[int, Floats]], matrix: tuple[int, int]
) -> tuple[tuple[int, Floats], ...]:
    """Spans start -> (stop, factors) as pairs (start, factors) that leave no row out."""
    found: list[tuple[int, Floats]] = []
    at = 0
    ones = np.ones(matrix[1], np.float32)
    for start, (stop, factors) in sorted(spans.items()):
        if start > at:
            found.append((at, ones))
        found.append((start, factors.astype(np.float32)))
        at = stop
    if found and at < matrix[0]:
        found.append((at, ones))
    return tuple(found)


def save_folds(path: Path, folds: Folds) -> None:
    """Write folds for worker processes; a reader sees all or nothing."""
    arrays: dict[str, Any] = {"offsets": np.array(json.dumps({n: f.offset for n, f in folds.items()}))}
    for name, fold in folds.items():
        if fold.rows is not None:
            arrays[f"{name}|rows"] = fold.rows
        if fold.columns:
            arrays[f"{name}|starts"] = np.array([start for start, _ in fold.columns])
            arrays[f"{name}|columns"] = np.stack([factors for _, factors in fold.columns])
    temporary = path.with_suffix(".part")
    with temporary.open("wb") as file:
        np.savez(file, **arrays)
    temporary.replace(path)


def load_folds(path: Path) -> dict[str, TensorFold]:
    """What `save_folds` wrote."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    found = {}
    for name, offset in json.loads(str(arrays["offsets"])).items():
        starts = arrays.get(f"{name}|starts", np.empty(0, int)).tolist()
        columns = tuple(zip(starts, arrays.get(f"{name}|columns", ()), strict=True))
        found[name] = TensorFold(arrays.get(f"{name}|rows"), columns, float(offset))
    return found


def folds_hash(folds: Folds) -> str:
    """sha256 of all factors, hexadecimal."""
    digest = hashlib.sha256()
    for name, fold in sorted(folds.items()):
        digest.update(f"{name}\0{fold.offset}\0".encode())
        digest.update(b"" if fold.rows is None else fold.rows.tobytes())
        for start, factors in fold.columns:
            digest.update(f"{start}\0".encode() + factors.tobytes())
    return digest.hexdigest()
