"""A live model whose weights are made of trained parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewbits.checkpoint.dtypes import Floats
from fewbits.language_model.predictions import Predictor
from fewbits.tuning.parameters import MatrixParameters, VectorParameters


@dataclass(frozen=True)
class Place:
    """Where rows of a tuned tensor lie in the live model.

    Attributes:
        parameter: name in the live model.
        expert: which of a stack; None for a matrix or a vector.
        start: first of the tuned tensor's rows (of a vector: always 0).
        rows: the live parameter's row (of a vector: element) that each is.
        shift: what is added to the tuned numbers.
    """

    parameter: str
    expert: int | None
    start: int
    rows: npt.NDArray[np.intp]
    shift: float = 0.0


@dataclass(frozen=True)
class Tuned:
    """A tensor that is trained, and where it lies."""

    parameters: MatrixParameters | VectorParameters
    places: tuple[Place, ...]


class Student:
    """The quantized model, its trained numbers as `logarithms` by tensor name (see `parameters`).

    As soon as the gradient of a live parameter is known, it becomes those of the trained numbers and is let go, so
    that no two are in memory at once.
    """

    def __init__(self, predictor: Predictor, tuned: Mapping[str, Tuned]) -> None:
        self.predictor = predictor
        self.tuned = tuned
        self.logarithms = {
            name: tuple(torch.zeros(len(numbers)) for numbers in found.parameters.start)
            for name, found in tuned.items()
        }
        self._live = dict(predictor.model.named_parameters())
        held: dict[str, list[tuple[str, Place]]] = {}
        for name, found in tuned.items():
            for place in found.places:
                held.setdefault(place.parameter, []).append((name, place))
        for name, parameter in self._live.items():
            parameter.requires_grad_(name in held)
            if name in held:
                parameter.register_post_accumulate_grad_hook(partial(self._collect, held[name]))

    def apply(self) -> None:
        """Put the weights that the trained numbers give into the live model."""
        for name, found in self.tuned.items():
            self.put(name, found.parameters.values(_numpy(self.logarithms[name])))

    def put(self, name: str, values: Floats) -> None:
        """Put the weights of one tensor, float32 [N, K] or [K], into the live model."""
        for place in self.tuned[name].places:
            rows = values[place.start : place.start + len(place.rows)]
            with torch.no_grad():
                part = _part_of(self._live[place.parameter], place)
                part[torch.from_numpy(place.rows)] = torch.from_numpy(rows) + place.shift

    def _collect(self, held: Sequence[tuple[str, Place]], live: Tensor) -> None:
        """Add the gradient of a live parameter to those of the trained numbers that it holds, and forget it."""
        if live.grad is None:
            return
        for name, place in held:
            logarithms = self.logarithms[name]
            found = self.tuned[name].parameters
            rows = _part_of(live.grad, place)[torch.from_numpy(place.rows)].numpy()
            if len(rows) == found.shape[0]:
                slope = rows
            else:  # the rest lies in other parameters
                slope = np.zeros(found.shape, np.float32)
                slope[place.start : place.start + len(rows)] = rows
            for number, gradient in zip(logarithms, found.gradients(slope, _numpy(logarithms)), strict=True):
                more = torch.from_numpy(gradient)
                number.grad = more if number.grad is None else number.grad + more
        live.grad = None


def _part_of(whole: Tensor, place: Place) -> Tensor:
    return whole if place.expert is None else whole[place.expert]


def _numpy(numbers: Sequence[Tensor]) -> tuple[Floats, ...]:
    return tuple(number.numpy() for number in numbers)
