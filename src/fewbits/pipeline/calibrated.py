"""Quantizing with statistics: one task per piece of a tensor, in worker processes, files as input.

A worker opens the source and the statistics itself, so that tasks are a few names and numbers; it runs
single-threaded, since tasks run side by side, but where memory leaves room for fewer workers than there are cores.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from math import lcm
from pathlib import Path
from typing import Any

import numpy as np

from fewbits.algorithms.registry import get_algorithm
from fewbits.calibration.statistics import Statistics
from fewbits.calibration.store import StatisticsStore
from fewbits.calibration.text import CalibrationTokens
from fewbits.checkpoint.source import open_checkpoint
from fewbits.export.exporter import OutputTensor
from fewbits.export.registry import get_exporter
from fewbits.formats import get_format
from fewbits.pipeline.folds import Folds, folded, load_folds
from fewbits.pipeline.memory import BASE_MEMORY, TORCH_MEMORY
from fewbits.pipeline.statistics_rows import Segment, segment_statistics
from fewbits.pipeline.tensors import Chunk, PartBytes, not_finite, part_bytes, whole_rows
from fewbits.planning.plan import TensorChoice

# Weights in one task: enough to spread a large embedding over the workers, few enough to bound memory.
TASK_WEIGHTS = 1 << 23
# float32 arrays of a task's size that an algorithm holds at once, and of K x K.
TASK_ARRAYS, SQUARE_ARRAYS = 8, 6
WINDOW = 2
# Rows of a task are a multiple of it.
_ROWS = 32
# What the libraries below NumPy and PyTorch take their number of threads from.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Material:
    """What a worker opens: the source, the container, the statistics and the folds if there are any, all by name."""

    source: str
    target: str
    store: str
    folds: str = ""


@dataclass(frozen=True)
class _Task:
    material: Material
    tensor: str
    start: int
    stop: int
    segment: Segment
    choice: TensorChoice
    effort: str


@dataclass(frozen=True)
class Calibration:
    """Statistics of a model, and how its container's tensors relate to them.

    Attributes:
        material: what worker processes open.
        segments: container tensor name -> runs of its rows with statistics.
        name: of the text.
        sha256: of its bytes.
        tokens: of it.
        starved: experts that saw too few tokens -> how many.
        folds: factors on the container's tensors.
        notes: what the user should know of the text.
    """

    material: Material
    segments: Mapping[str, list[Segment]]
    name: str
    sha256: str
    tokens: CalibrationTokens
    starved: Mapping[str, int] = field(default_factory=dict)
    folds: Folds = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know of the text and what it reached."""
        few = f"{len(self.starved)} experts saw too few calibration tokens; they lean on the others'"
        return (*self.notes, few) if self.starved else self.notes


@contextmanager
def worker_pool(workers: int, threads: int) -> Iterator[ProcessPoolExecutor]:
    """Processes of so many threads; started afresh, since PyTorch's threads don't survive a fork."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, str(threads)))
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _end_with_parent() -> None:
    """Workers of a killed run would wait for tasks forever: they hold each other's ends of the queue open."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@lru_cache(1)
def open_tensors(material: Material) -> Mapping[str, OutputTensor]:
    """The container's tensors of a source after its folds, by name."""
    tensors = get_exporter(material.target).tensors(open_checkpoint(material.source))
    return {t.name: t for t in folded(tensors, open_folds(material.folds))}


@lru_cache(1)
def open_folds(path: str) -> Folds:
    """The folds in a file; none for an empty name."""
    return load_folds(Path(path)) if path else {}


def statistics_of(material: Material, tensor: str, segment: Segment, start: int, stop: int) -> Statistics:
    """Statistics of rows start … stop of a container's tensor, which must lie inside the segment."""
    found = segment_statistics(open_store(material.store), segment, start, stop)
    fold = open_folds(material.folds).get(tensor)
    return fold.statistics(found, start, stop) if fold else found


@lru_cache(1)
def open_store(folder: str) -> StatisticsStore:
    """The statistics in a folder."""
    return StatisticsStore(Path(folder))


def _run(task: _Task) -> tuple[PartBytes, bool]:
    known = open_tensors(task.material)
    tensor = known[task.tensor]
    weight = tensor.source.rows(task.start, task.stop)
    if not np.isfinite(weight).all():
        raise not_finite(tensor)
    statistics = statistics_of(task.material, task.tensor, task.segment, task.start, task.stop)
    fmt = get_format(task.choice.format).prepare(whole_rows(tensor, known))
    name = task.choice.algorithm
    chosen = get_algorithm(name).quantize_checked(weight, fmt, statistics, task.effort)
    return part_bytes(chosen.qtensor.pack()), chosen.algorithm == name


def _tasks(
    calibration: Calibration, tensor: OutputTensor, choice: TensorChoice, effort: str
) -> Iterator[_Task]:
    together = lcm(_ROWS, get_format(choice.format).rows_together)
    step = max(together, TASK_WEIGHTS // max(tensor.shape[-1], 1) // together * together)
    for segment in calibration.segments[tensor.name]:
        end = segment.start + len(segment.rows)
        for start in range(segment.start, end, step):
            stop = min(start + step, end)
            piece = Segment(
                segment.parameter, start, segment.rows[start - segment.start : stop - segment.start]
            )
            yield _Task(calibration.material, tensor.name, start, stop, piece, choice, effort)


def calibrated_chunks(
    calibration: Calibration,
    group: WorkerGroup,
    choices: Mapping[str, TensorChoice],
    effort: str,
) -> Iterator[tuple[Chunk, bool]]:
    """The bytes of a group's tensors, piece by piece in order, and whether the plan's algorithm was kept for each.

    Raises:
        CheckpointError: a weight that isn't finite; the message counts them.
    """
    with worker_pool(group.workers, group.threads) as pool:
        waiting: deque[tuple[OutputTensor, _Task, bool, Future[tuple[PartBytes, bool]]]] = deque()
        for tensor in group.tensors:
            tasks = list(_tasks(calibration, tensor, choices[tensor.name], effort))
            for task in tasks:
                waiting.append((tensor, task, task is tasks[-1], pool.submit(_run, task)))
                if len(waiting) > WINDOW * group.workers:
                    yield _finish(*waiting.popleft())
        while waiting:
            yield _finish(*waiting.popleft())


def _finish(tensor: OutputTensor, task: _Task, last: bool, future: Future[Any]) -> tuple[Chunk, bool]:
    parts, kept = future.result()
    return Chunk(tensor, parts, (task.stop - task.start) * tensor.shape[-1], last), kept


def workers_within(tensors: Iterable[OutputTensor], workers: int, memory: int) -> int:
    """How many of so many workers may run at once so that they and the process that plans stay within `memory`.

    At least 1: less isn't possible.
    """
    room = memory - BASE_MEMORY - TORCH_MEMORY
    return max(1, min(workers, room // max(1, calibrated_memory(tensors, 1))))


@dataclass(frozen=True)
class WorkerGroup:
    """Tensors of which as many may be worked on at once: `workers`, each with `threads`."""

    workers: int
    threads: int
    tensors: tuple[OutputTensor, ...]


def worker_group(tensors: Sequence[OutputTensor], cores: int, memory: int) -> WorkerGroup:
    """All of these tensors as one group: as many workers as the largest leaves room for, which share the cores."""
    workers = workers_within(tensors, cores, memory)
    return WorkerGroup(workers, max(1, cores // workers), tuple(tensors))


def by_workers(tensors: Iterable[OutputTensor], cores: int, memory: int) -> list[WorkerGroup]:
    """Tensors by what memory has room for, those first of which the most may be worked on at once.

    A model's widest matrices need many times the memory of others, which needn't wait for one another.
    """
    groups: dict[int, list[OutputTensor]] = {}
    for tensor in tensors:
        groups.setdefault(workers_within([tensor], cores, memory), []).append(tensor)
    return [worker_group(group, cores, memory) for _, group in sorted(groups.items(), reverse=True)]


def calibrated_memory(tensors: Iterable[OutputTensor], workers: int) -> int:
    """Bytes that the workers hold at once, at most."""
    largest = 0
    for tensor in tensors:
        rows, columns = tensor.source.matrix
        rows = min(rows, max(_ROWS, TASK_WEIGHTS // max(columns, 1)))
        largest = max(largest, 4 * (TASK_ARRAYS * rows * columns + SQUARE_ARRAYS * columns * columns))
    return workers * (BASE_MEMORY + largest)
