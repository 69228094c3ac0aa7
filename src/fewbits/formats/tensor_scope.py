"""Formats that may have one scale for the whole tensor, which has to be seen before any of its rows is fitted."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterable
from typing import Generic, TypeVar

import numpy as np

from fewbits.errors import FormatError
from fewbits.formats.format import Floats, Format, Params
from fewbits.formats.scale_search import histogram

TENSOR = "TENSOR"

P = TypeVar("P", bound=Params)
F = TypeVar("F", bound="TensorScope")  # type: ignore[type-arg]


class TensorScope(Format[P], Generic[P]):
    """A format whose scales are for groups or rows, or, where `scope` says so, for the tensor.

    Attributes:
        scope: what a scale is for.
    """

    scope: str
    _bound: P | None = None

    def prepare(self: F, chunks: Iterable[Floats]) -> F:
        """For a scale of the whole tensor: a copy whose `fit` returns the best one for these numbers."""
        if self.scope != TENSOR:
            return self
        bound = copy.copy(self)
        bound._bound = self._fit(*histogram(chunks))
        return bound

    def fit(self, weight: Floats, importance: Floats | None = None) -> P:
        """Parameters by candidate search; see `Format.fit`.

        Raises:
            FormatError: the format has one scale for the whole tensor and `prepare` wasn't called.
        """
        if self.scope != TENSOR:
            return self._fit(weight, importance)
        if self._bound is None:
            raise FormatError(
                f"{self.name} has one scale for the whole tensor and doesn't know the tensor yet",
                action="Call prepare(chunks) and use the format that it returns.",
            )
        return self._bound.take(np.zeros(weight.shape[0], np.intp))

    @abstractmethod
    def _fit(self, weight: Floats, importance: Floats | None) -> P:
        """Parameters of each block of float32 [R, B] by itself."""
