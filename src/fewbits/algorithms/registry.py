"""Algorithms by name. Adding one: a module with a `quantize`, and its line in `_ALGORITHMS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from fewbits.algorithms import gptq, hqq, imatrix, rtn, signround
from fewbits.algorithms.algorithm import Algorithm, Choice
from fewbits.algorithms.held_out import checked
from fewbits.calibration.statistics import Statistics
from fewbits.errors import PlanError
from fewbits.formats import Format, QTensor
from fewbits.formats.format import Floats, Parts
from fewbits.formats.stored_rows import StoredRows, finite_float32

Function: TypeAlias = Callable[..., QTensor]

# What plans call the algorithm of tensors that stay in floating point.
NONE = "none"


@dataclass(frozen=True)
class NamedAlgorithm:
    """A function with its name, see `Algorithm`.

    Attributes:
        name: as it stands in plans.
        function: weight, format and, if it needs them, statistics -> QTensor.
        options: by effort, what `function` is called with besides.
        needs_statistics: whether `function` takes statistics.
        rounds: whether it does what `Format.quantize_rows` does.
    """

    name: str
    function: Function
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    needs_statistics: bool = True
    rounds: bool = False

    def quantize(self, weight: Floats, fmt: Format[Any], statistics: Statistics | None = None) -> QTensor:
        """float32 [N, K] -> QTensor, with the function's own defaults.

        Raises:
            PlanError: there are no statistics, and they are needed.
        """
        return self._run(weight, fmt, statistics, {})

    def quantize_rows(self, rows: StoredRows, fmt: Format[Any], importance: Floats | None = None) -> Parts:
        """Rows [N, K] as the container's arrays, without statistics; importance float32 [K] or [N, K] if it `rounds`.

        Raises:
            NotFiniteError: there are NaN or infinities among them.
            PlanError: there are no statistics, and they are needed.
        """
        if self.rounds:
            return fmt.quantize_rows(rows, importance)
        return self.quantize(finite_float32(rows, fmt.name), fmt).pack()

    def quantize_checked(
        self, weight: Floats, fmt: Format[Any], statistics: Statistics, effort: str = "balanced"
    ) -> Choice:
        """The result, unless importance-weighted rounding is better on held-out tokens: then that."""
        result = self._run(weight, fmt, statistics, self.options.get(effort, {}))
        return checked(result, self.name, weight, statistics)

    def _run(
        self, weight: Floats, fmt: Format[Any], statistics: Statistics | None, options: Mapping[str, Any]
    ) -> QTensor:
        if not self.needs_statistics:
            return self.function(weight, fmt, **options)
        if statistics is None:
            raise PlanError(
                f"{self.name} needs calibration statistics", action="Use --effort balanced or best"
            )
        return self.function(weight, fmt, statistics, **options)


_ALGORITHMS: dict[str, NamedAlgorithm] = {
    algorithm.name: algorithm
    for algorithm in (
        NamedAlgorithm(rtn.NAME, rtn.quantize, needs_statistics=False, rounds=True),
        NamedAlgorithm(hqq.NAME, hqq.quantize, needs_statistics=False),
        NamedAlgorithm(imatrix.NAME, imatrix.quantize, rounds=True),
        NamedAlgorithm(gptq.NAME, gptq.quantize, gptq.EFFORTS),
        NamedAlgorithm(signround.NAME, signround.quantize, signround.EFFORTS),
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


def needs_statistics(name: str) -> bool:
    """Whether the algorithm of this name in a plan needs calibration statistics; floating point doesn't.

    Raises:
        PlanError: no such algorithm.
    """
    return name != NONE and get_algorithm(name).needs_statistics
