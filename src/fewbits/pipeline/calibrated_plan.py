"""The choice of formats by the calibrated efforts: prices measured on the model, then the best use of the bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import log, prod

from fewbits.errors import BudgetError
from fewbits.export.exporter import Exporter, OutputTensor
from fewbits.pipeline.calibrate import PRICING_ALGORITHM, Prices
from fewbits.pipeline.calibrated import Calibration
from fewbits.pipeline.goal import FileSize, Goal, pinned_tensors, pinned_uniform
from fewbits.planning.allocation import exact_choice, gaussian_error
from fewbits.planning.byte_size import parse_bytes
from fewbits.planning.frontier import FilePoint, frontier
from fewbits.planning.knapsack import Option, Solution, merge_tied, solve, solve_for_price
from fewbits.planning.options import fixed_nbytes, holds, options_for, useful_formats
from fewbits.planning.pins import apply_pins
from fewbits.planning.plan import DEFAULT_ALGORITHM, TensorChoice, read_plan

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
        return with_algorithm(pinned_uniform(tensors, exporter, goal), calibration), None
    options = priced_options(tensors, exporter, prices, pinned_tensors(tensors, goal))
    tied = exporter.tied(tensors)

    def choices_of(solution: Solution) -> dict[str, TensorChoice]:
        return choices_for(solution.choices, tensors, exporter, calibration)

    if goal.max_kl is not None:
        solution = solve_for_price(options, goal.max_kl, tied=tied)
        return choices_of(solution), solution.price
    if goal.bits is not None:
        weights = sum(prod(t.shape) for t in tensors)
        budget = int(goal.bits * weights / 8) - fixed_nbytes(tensors, exporter)
        solution = solve(options, budget, tied=tied)
        return choices_of(solution), solution.price
    assert goal.size is not None
    return _within(parse_bytes(goal.size), options, tied, choices_of, file_size)


def calibrated_frontier(
    tensors: Sequence[OutputTensor],
    exporter: Exporter,
    goal: Goal,
    file_size: FileSize,
    calibration: Calibration,
    prices: Prices,
    points: int,
) -> list[FilePoint]:
    """The least predicted KL divergence of whole files, from the smallest there can be to the best.

    Args:
        tensors: what the container holds.
        exporter: writes it.
        goal: for its pins.
        file_size: bytes of a whole file, header included.
        calibration: what is known of the model.
        prices: measured alike for all sizes.
        points: how many, at most.

    Raises:
        PlanError: a pin that can't be kept.
    """
    options = priced_options(tensors, exporter, prices, pinned_tensors(tensors, goal))
    weights = sum(prod(t.shape) for t in tensors)
    floating = fixed_nbytes(tensors, exporter)
    found = []
    for point in frontier(options, points=points, tied=exporter.tied(tensors)):
        choices = choices_for(point.choices, tensors, exporter, calibration)
        used = Counter(point.choices.values())
        bits = 8 * (point.nbytes + floating) / weights
        found.append(FilePoint(file_size(choices), round(bits, 4), point.price, dict(used.most_common())))
    return found


def _within(
    limit: int,
    options: Mapping[str, Sequence[Option]],
    tied: Sequence[Sequence[str]],
    choices_of: Callable[[Solution], dict[str, TensorChoice]],
    file_size: FileSize,
) -> tuple[dict[str, TensorChoice], float]:
    """The solution whose whole file has at most `limit` bytes."""
    merged, _ = merge_tied(options, tied)
    smallest = solve(options, sum(min(o.nbytes for o in items) for items in merged.values()), tied=tied)
    overhead = file_size(choices_of(smallest)) - smallest.nbytes
    for _ in range(_ROUNDS):
        solution = solve(options, max(limit - overhead, smallest.nbytes), tied=tied)
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
    tensors: Sequence[OutputTensor],
    exporter: Exporter,
    prices: Prices,
    pinned: Mapping[str, str] | None = None,
) -> dict[str, list[Option]]:
    """The knapsack's items, pinned ones with one option each.

    Tensors without statistics get the average price of a weight in each format.

    Raises:
        PlanError: a pin to a format that the tensor can't have.
    """
    pinned = pinned or {}
    known = [t for t in tensors if t.name in prices]
    mean = _mean_prices(known, prices)
    full = dict(prices)
    for tensor in tensors:
        if tensor.quantizable and tensor.name not in full:
            names = [n for n in (*useful_formats(tensor, exporter), "F16") if n in mean or not known]
            full[tensor.name] = {n: prod(tensor.shape) * mean.get(n, 0.0) for n in names}
            name = pinned.get(tensor.name)
            if name and name not in full[tensor.name] and holds(tensor, name, exporter):
                full[tensor.name][name] = prod(tensor.shape) * _unmeasured(name, mean)
    return apply_pins(options_for(tensors, exporter, full), pinned)


def _mean_prices(known: Sequence[OutputTensor], prices: Prices) -> dict[str, float]:
    """Format -> price of one weight, over the tensors that have a price for it."""
    mean: dict[str, float] = {}
    for name in {name for t in known for name in prices[t.name]}:
        having = [t for t in known if name in prices[t.name]]
        mean[name] = sum(prices[t.name][name] for t in having) / max(sum(prod(t.shape) for t in having), 1)
    return mean


def _unmeasured(name: str, mean: Mapping[str, float]) -> float:
    """The price of one weight in a format that none was measured in: that of the format with the nearest error.

    It is scaled by the errors on Gaussian numbers, to which prices are about proportional.
    """
    quantized = [n for n in mean if gaussian_error(n) > 0 and mean[n] > 0]
    if name in mean or not quantized or not gaussian_error(name):
        return mean.get(name, 0.0)
    error = gaussian_error(name)
    nearest = min(sorted(quantized), key=lambda n: abs(log(gaussian_error(n) / error)))
    return mean[nearest] * error / gaussian_error(nearest)


def choices_for(
    formats: Mapping[str, str],
    tensors: Sequence[OutputTensor],
    exporter: Exporter,
    calibration: Calibration,
) -> dict[str, TensorChoice]:
    """The choices that give items of the knapsack these formats, and leave all else in floating point."""
    base = {t.name: TensorChoice(t.plain, "none") for t in tensors}
    return with_algorithm(base | {n: exact_choice(f, exporter) for n, f in formats.items()}, calibration)


def with_algorithm(choices: Mapping[str, TensorChoice], calibration: Calibration) -> dict[str, TensorChoice]:
    """The choices with the calibrated algorithm wherever there are statistics for it."""
    return {
        name: replace(choice, algorithm=PRICING_ALGORITHM)
        if choice.algorithm == DEFAULT_ALGORITHM and name in calibration.segments
        else choice
        for name, choice in choices.items()
    }
