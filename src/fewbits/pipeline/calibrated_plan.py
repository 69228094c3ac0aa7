"""The choice of formats by the calibrated efforts: prices measured on the model, then the best use of the bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod

from fewbits.errors import BudgetError
from fewbits.export.exporter import Exporter, OutputTensor
from fewbits.pipeline.calibrate import PRICING_ALGORITHM, Prices
from fewbits.pipeline.calibrated import Calibration
from fewbits.pipeline.goal import DEFAULT_FORMAT, FileSize, Goal, with_pins
from fewbits.planning.allocation import exact_choice, uniform
from fewbits.planning.byte_size import parse_bytes
from fewbits.planning.knapsack import Option, Solution, solve, solve_for_price
from fewbits.planning.options import fixed_nbytes, options_for, useful_formats
from fewbits.planning.pins import apply_pins, parse_pins, pinned_formats
from fewbits.planning.plan import TensorChoice, read_plan

# The header holds the plan, whose text varies with the choice: a few rounds make the size exact.
_ROUNDS = 6


def calibrated_choices(
    tensors: Sequence[OutputTensor],
    exporter: Exporter,
    goal: Goal,
    file_size: FileSize,
    calibration: Calibration,
    prices: Prices,
) -> tuple[dict[str, TensorChoice], float | None]:
    """Choices for the calibrated efforts, and the predicted KL divergence where they were optimised.

    Raises:
        PlanError: the goal can't be reached.
    """
    if goal.plan is not None:
        return dict(read_plan(goal.plan).tensors), None
    if goal.size is None and goal.bits is None and goal.max_kl is None:
        choices = with_pins(
            tensors, exporter, uniform(tensors, exporter, goal.format or DEFAULT_FORMAT), goal
        )
        return with_algorithm(choices, calibration), None
    options = priced_options(tensors, exporter, prices)
    names = [t.name for t in tensors if t.quantizable]
    options = apply_pins(options, pinned_formats(parse_pins(goal.pins), names)) if goal.pins else options

    def choices_of(solution: Solution) -> dict[str, TensorChoice]:
        base = {t.name: TensorChoice(t.plain, "none") for t in tensors}
        chosen = {n: exact_choice(f, exporter) for n, f in solution.choices.items()}
        return with_algorithm(base | chosen, calibration)

    if goal.max_kl is not None:
        solution = solve_for_price(options, goal.max_kl)
        return choices_of(solution), solution.price
    if goal.bits is not None:
        weights = sum(prod(t.shape) for t in tensors)
        solution = solve(options, int(goal.bits * weights / 8) - fixed_nbytes(tensors, exporter))
        return choices_of(solution), solution.price
    assert goal.size is not None
    return _within(parse_bytes(goal.size), options, choices_of, file_size)


def _within(
    limit: int,
    options: Mapping[str, Sequence[Option]],
    choices_of: Callable[[Solution], dict[str, TensorChoice]],
    file_size: FileSize,
) -> tuple[dict[str, TensorChoice], float]:
    """The solution whose whole file has at most `limit` bytes."""
    smallest = solve(options, sum(min(o.nbytes for o in items) for items in options.values()))
    overhead = file_size(choices_of(smallest)) - smallest.nbytes
    for _ in range(_ROUNDS):
        solution = solve(options, max(limit - overhead, smallest.nbytes))
        choices = choices_of(solution)
        excess = file_size(choices) - limit
        if excess <= 0:
            return choices, solution.price
        overhead += excess
    choices = choices_of(smallest)
    nbytes = file_size(choices)
    if nbytes <= limit:
        return choices, smallest.price
    raise BudgetError(
        "the size can't be reached", found=f"--size of {limit:,} bytes",
        allowed=f"at least {nbytes:,} bytes, the smallest possible",
    )  # fmt: skip


def priced_options(
    tensors: Sequence[OutputTensor], exporter: Exporter, prices: Prices
) -> dict[str, list[Option]]:
    """The knapsack's items; tensors without statistics get the average price of a weight in each format."""
    known = [t for t in tensors if t.name in prices]
    weights = sum(prod(t.shape) for t in known)
    mean: dict[str, float] = {}
    for name in {name for t in known for name in prices[t.name]}:
        having = [t for t in known if name in prices[t.name]]
        mean[name] = sum(prices[t.name][name] for t in having) / max(sum(prod(t.shape) for t in having), 1)
    full = dict(prices)
    for tensor in tensors:
        if tensor.quantizable and tensor.name not in full:
            names = [n for n in (*useful_formats(tensor, exporter), "F16") if n in mean or not weights]
            full[tensor.name] = {n: prod(tensor.shape) * mean.get(n, 0.0) for n in names}
    return options_for(tensors, exporter, full)


def with_algorithm(choices: Mapping[str, TensorChoice], calibration: Calibration) -> dict[str, TensorChoice]:
    """The choices with the calibrated algorithm wherever there are statistics for it."""
    return {
        name: replace(choice, algorithm=PRICING_ALGORITHM)
        if choice.algorithm == "rtn" and name in calibration.segments
        else choice
        for name, choice in choices.items()
    }
