"""Algorithms by name. Adding one: a module with a `quantize`, and its line in `_ALGORITHMS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from fewbits.algorithms import gptq, imatrix, rtn
from fewbits.algorithms.algorithm import Algorithm, Choice
from fewbits.algorithms.held_out import checked
from fewbits.calibration.statistics import Statistics
from fewbits.errors import PlanError
from fewbits.formats import Format, QTensor
from fewbits.formats.format import Floats

Function: TypeAlias = Callable[..., QTensor]


@dataclass(frozen=True)
class NamedAlgorithm:
    """A function with its name, see `Algorithm`.

    Attributes:
        name: as it stands in plans.
        function: weight, format, statistics -> QTensor.
        options: by effort, what `function` is called with besides.
    """

    name: str
    function: Function
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def quantize(self, weight: Floats, fmt: Format[Any], statistics: Statistics) -> QTensor:
        """float32 [N, K] -> QTensor, with the function's own defaults."""
        return self.function(weight, fmt, statistics)

    def quantize_checked(
        self, weight: Floats, fmt: Format[Any], statistics: Statistics, effort: str = "balanced"
    ) -> Choice:
        """The result, unless importance-weighted rounding is better on held-out tokens: then that."""
        result = self.function(weight, fmt, statistics, **self.options.get(effort, {}))
        return checked(result, self.name, weight, statistics)


def _without_statistics(weight: Floats, fmt: Format[Any], statistics: Statistics) -> QTensor:
    del statistics
    return rtn.quantize(weight, fmt)


_ALGORITHMS: dict[str, NamedAlgorithm] = {
    algorithm.name: algorithm
    for algorithm in (
        NamedAlgorithm(rtn.NAME, _without_statistics),
        NamedAlgorithm(imatrix.NAME, imatrix.quantize),
        NamedAlgorithm(gptq.NAME, gptq.quantize, gptq.EFFORTS),
    )
}


def algorithm_names() -> list[str]:
    """Names of all algorithms, the simplest first."""
    return list(_ALGORITHMS)


def get_algorithm(name: str) -> Algorithm:
    """The algorithm called `name`.

    Raises:
        PlanError: no such algorithm.
    """
    if name not in _ALGORITHMS:
        raise PlanError("unknown algorithm", found=repr(name), allowed=", ".join(algorithm_names()))
    return _ALGORITHMS[name]
