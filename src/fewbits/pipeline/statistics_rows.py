"""Which rows of a container's tensor are which rows of the live model's linear maps.

Statistics are gathered on the live model, under transformers' parameter names; plans and files name the container's
tensors, whose rows may be permuted, split or stacked. The exporter knows how, as transforms of lazy tensors. So a
shadow of the model goes through it, whose "weights" are the number of the tensor and of the row they stand in;
where these come out tells which row became which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fewbits.calibration.statistics import Statistics
from fewbits.calibration.store import StatisticsStore
from fewbits.checkpoint.checkpoint import Floats, LazyTensor
from fewbits.export.exporter import Exporter, OutputTensor

# Between the numbers of a vector's shadow, so that what exporters add to norms (1, or -1) is told from them.
_SPACING = 4


class _Shadow(LazyTensor):
    """Stands for a tensor [.., N, K] as [.., N, 2]: its number, and the number of the row.

    For a vector as one of numbers: its own everywhere, or those of its elements, times `_SPACING`.
    """

    def __init__(self, name: str, shape: tuple[int, ...], number: int, elements: bool = False) -> None:
        self.name, self.dtype, self.number, self.elements = name, "F32", number, elements
        self.shape = (*shape[:-1], 2) if len(shape) > 1 else shape

    def rows(self, start: int, stop: int) -> Floats:
        if len(self.shape) < 2:
            width = self.matrix[1]
            numbers = np.arange(width) if self.elements else np.full(width, self.number)
            return np.repeat(_SPACING * numbers[None].astype(np.float32), stop - start, axis=0)
        numbers = np.arange(start, stop, dtype=np.float32)
        return np.stack([np.full_like(numbers, self.number), numbers], axis=1)


@dataclass(frozen=True)
class Segment:
    """Consecutive rows of a container's tensor that belong to one linear map of the live model.

    Attributes:
        parameter: the statistics' name: a parameter of the live model, ``name#e`` for expert e of a stack.
        start: first row in the container's tensor.
        rows: int [n], the row of the live model's map that each is.
    """

    parameter: str
    start: int
    rows: npt.NDArray[np.intp]


def statistics_rows(
    exporter: Exporter, tensors: list[OutputTensor], metadata: Mapping[str, object], known: set[str]
) -> dict[str, list[Segment]]:
    """Segments by container tensor name; tensors without statistics are left out.

    Args:
        exporter: writes the container.
        tensors: what it holds.
        metadata: what it says.
        known: names that there are statistics for.
    """
    shadows = {t.name: _Shadow(t.name, t.shape, i) for i, t in enumerate(tensors)}
    wanted = {name.partition("#")[0] for name in known}
    found: dict[str, list[Segment]] = {}
    for name, tensor in exporter.parameters(shadows, metadata, wanted).items():
        if len(tensor.shape) < 2 or tensor.shape[-1] != 2:
            continue
        for parameter, numbers in _maps(name, tensor):
            if parameter in known:
                _place(found, parameter, numbers, tensors)
    return {name: sorted(segments, key=lambda s: s.start) for name, segments in found.items()}


def _maps(name: str, tensor: LazyTensor) -> list[tuple[str, npt.NDArray[np.intp]]]:
    """(statistics' name, int [N, 2]) of a parameter; one per expert for stacks."""
    numbers = tensor.read().astype(np.intp)
    if numbers.ndim == 2:
        return [(name, numbers)]
    return [(f"{name}#{expert}", rows) for expert, rows in enumerate(numbers)]


def _place(
    found: dict[str, list[Segment]],
    parameter: str,
    numbers: npt.NDArray[np.intp],
    tensors: list[OutputTensor],
) -> None:
    """Sort the rows of one map into the tensors where they lie."""
    for number in np.unique(numbers[:, 0]):
        live = np.flatnonzero(numbers[:, 0] == number)
        order = np.argsort(numbers[live, 1], kind="stable")
        start = int(numbers[live[order[0]], 1])
        name = tensors[int(number)].name
        segments = found.setdefault(name, [])
        if all(s.start != start for s in segments):  # a tied head is the embedding once more
            segments.append(Segment(parameter, start, live[order]))


@dataclass(frozen=True)
class VectorPlace:
    """Where a container holds a vector of the live model.

    Attributes:
        tensor: the container's.
        positions: which of its elements each element is, int [n].
        shift: what is added to the container's numbers to give the live model's.
    """

    tensor: str
    positions: npt.NDArray[np.intp]
    shift: float


def vector_places(
    exporter: Exporter, tensors: Sequence[OutputTensor], metadata: Mapping[str, object], wanted: set[str]
) -> dict[str, VectorPlace]:
    """Where a container holds norms and biases, by the live model's names; those spread over several are left out."""
    numbers, elements = (
        {
            name: tensor.read().reshape(-1)
            for name, tensor in exporter.parameters(shadows, metadata, wanted).items()
            if name in wanted and len(tensor.shape) == 1
        }
        for shadows in (
            {t.name: _Shadow(t.name, t.shape, i, number) for i, t in enumerate(tensors)}
            for number in (False, True)
        )
    )
    found = {}
    for name, values in numbers.items():
        number = np.rint(values / _SPACING).astype(np.intp)
        positions = np.rint(elements[name] / _SPACING).astype(np.intp)
        shift = elements[name] - _SPACING * positions
        if len(values) and (number == number[0]).all() and (shift == shift[0]).all():
            found[name] = VectorPlace(tensors[int(number[0])].name, positions, float(shift[0]))
    return found


def segment_statistics(store: StatisticsStore, segment: Segment, start: int, stop: int) -> Statistics:
    """Statistics of rows start … stop of the container's tensor, which must lie inside the segment."""
    return store.load(segment.parameter).of_rows(segment.rows[start - segment.start : stop - segment.start])
