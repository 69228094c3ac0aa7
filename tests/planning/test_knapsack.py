"""Properties of the knapsack, against brute force."""

from __future__ import annotations

from itertools import product
from math import fsum
from time import perf_counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.errors import BudgetError, PlanError
from fewbits.planning.knapsack import Option, hull, solve, solve_for_price

# Prices are multiples of 1/64, so that all sums are exact and comparisons need no tolerance but the bound's.
PRICES = st.integers(0, 4096).map(lambda n: n / 64)
ITEMS = st.lists(
    st.lists(st.tuples(st.integers(0, 200), PRICES), min_size=1, max_size=4), min_size=1, max_size=5
)


def table(items: list[list[tuple[int, float]]]) -> dict[str, list[Option]]:
    """Options called o0, o1 … of items called t0, t1 …"""
    return {
        f"t{i}": [Option(nbytes, price, f"o{k}") for k, (nbytes, price) in enumerate(options)]
        for i, options in enumerate(items)
    }


def totals(options: dict[str, list[Option]]) -> list[tuple[int, float]]:
    """Bytes and price of every choice there is."""
    return [(sum(o.nbytes for o in c), fsum(o.price for o in c)) for c in product(*options.values())]


def recount(options: dict[str, list[Option]], choices: dict[str, str]) -> tuple[int, float]:
    """Bytes and price of these choices, added up anew."""
    picked = [next(o for o in options[name] if o.name == choices[name]) for name in options]
    return sum(o.nbytes for o in picked), fsum(o.price for o in picked)


def model(seed: int, items: int = 300) -> dict[str, list[Option]]:
    """Tensors of very different sizes and sensitivities with 13 formats each; the first is an embedding."""
    rng = np.random.default_rng(seed)
    bits = (2.06, 2.56, 2.6, 3.06, 3.44, 4.25, 4.5, 5.0, 5.5, 6.0, 6.56, 8.5, 16.0)
    options = {}
    for i in range(items):
        weights = 256 * (200_000 if i == 0 else int(rng.integers(100, 20_000)))
        worth = float(np.exp(1.5 * rng.normal())) * weights
        noise = np.exp(0.2 * rng.normal(size=len(bits)))
        options[f"t{i}"] = [
            Option(int(weights * b / 8), worth * 4.0**-b * float(e), f"{b}bit")
            for b, e in zip(bits, noise, strict=True)
        ]
    return options


@settings(max_examples=300, deadline=None)
@given(ITEMS, st.floats(0, 1))
def test_solve_against_all_choices(items: list[list[tuple[int, float]]], share: float) -> None:
    options = table(items)
    every = totals(options)
    least, most = min(b for b, _ in every), max(b for b, _ in every)
    budget = least + int(share * (most - least))
    optimum = min(p for b, p in every if b <= budget)
    solution = solve(options, budget)
    assert (solution.nbytes, solution.price) == recount(options, solution.choices)
    assert solution.nbytes <= budget
    assert solution.bound <= optimum + 1e-9
    assert optimum <= solution.price
    assert solution.gap == solution.price - solution.bound >= 0


@settings(max_examples=300, deadline=None)
@given(ITEMS, st.floats(0, 1))
def test_solve_for_price_against_all_choices(items: list[list[tuple[int, float]]], share: float) -> None:
    options = table(items)
    every = totals(options)
    least, most = min(p for _, p in every), max(p for _, p in every)
    limit = least + int(64 * share * (most - least)) / 64
    optimum = min(b for b, p in every if p <= limit)
    solution = solve_for_price(options, limit)
    assert (solution.nbytes, solution.price) == recount(options, solution.choices)
    assert solution.price <= limit
    assert solution.bound <= optimum + 1e-6
    assert optimum <= solution.nbytes
    assert solution.gap >= 0


@settings(max_examples=100, deadline=None)
@given(ITEMS, st.floats(0, 1), st.randoms(use_true_random=False))
def test_the_order_of_tensors_and_options_changes_nothing(items, share, random) -> None:  # type: ignore[no-untyped-def]
    options = table(items)
    every = totals(options)
    budget = int(min(b for b, _ in every) + share * 300)
    shuffled = {
        n: random.sample(options[n], len(options[n])) for n in random.sample(list(options), len(options))
    }
    assert solve(options, budget).choices == solve(shuffled, budget).choices


@pytest.mark.parametrize("seed", [0, 1])
def test_a_model_of_300_tensors_is_solved_nearly_exactly_and_fast(seed: int) -> None:
    options = model(seed)
    smallest = sum(min(o.nbytes for o in v) for v in options.values())
    for factor in (1.2, 1.6, 2.0, 2.7):
        start = perf_counter()
        solution = solve(options, int(smallest * factor))
        inverse = solve_for_price(options, solution.price)
        assert perf_counter() - start < 3  # 0.1 s on an idle core
        assert solution.gap <= 1e-3 * solution.price
        assert 0.9999 * smallest * factor < solution.nbytes <= smallest * factor
        assert inverse.price <= solution.price * (1 + 1e-12)
        assert inverse.gap <= 1e-3 * inverse.nbytes
        assert abs(inverse.nbytes - solution.nbytes) <= 1e-3 * solution.nbytes


def test_a_very_large_tensor_is_decided_by_search_not_by_rounding_down() -> None:
    # The relaxation cuts the embedding; rounding it down and filling up costs 11, keeping it large 6.
    options = {
        "embedding": [Option(100, 10.0, "small"), Option(200, 0.0, "large")],
        "a": [Option(10, 6.0, "small"), Option(60, 1.0, "large")],
    }
    assert solve(options, 211).choices == {"embedding": "large", "a": "small"}
    assert solve(options, 211).gap == 0


def test_tied_tensors_get_one_format() -> None:
    options = {
        "a": [Option(10, 5.0, "x"), Option(20, 0.0, "y"), Option(1, 9.0, "z")],
        "b": [Option(10, 1.0, "x"), Option(20, 0.5, "y")],
        "c": [Option(10, 3.0, "x"), Option(20, 0.0, "y")],
    }
    free, tied = solve(options, 50), solve(options, 50, tied=[["a", "b"]])
    assert free.choices == {"a": "y", "b": "x", "c": "y"}
    assert tied.choices == {"a": "y", "b": "y", "c": "x"}
    assert (tied.nbytes, tied.price) == (50, 3.5)
    assert solve_for_price(options, 3.5, tied=[["a", "b"]]).choices == tied.choices


def test_tied_tensors_without_a_common_format_are_an_error() -> None:
    options = {"a": [Option(1, 1.0, "x")], "b": [Option(1, 1.0, "y")]}
    with pytest.raises(PlanError, match="a, b"):
        solve(options, 10, tied=[["a", "b"]])


def test_a_tensor_without_options_is_an_error() -> None:
    with pytest.raises(PlanError, match="odd"):
        solve({"odd": []}, 10)


def test_what_cannot_be_reached_says_how_far_one_can_get() -> None:
    options = table([[(10, 5.0), (20, 1.0)], [(7, 2.0), (9, 0.5)]])
    with pytest.raises(BudgetError, match="at least 17"):
        solve(options, 16)
    with pytest.raises(BudgetError, match=r"at least 1\.5"):
        solve_for_price(options, 1.0)


def test_hull_keeps_the_convex_corners() -> None:
    points = [(0.0, 10.0), (1.0, 6.0), (2.0, 5.5), (3.0, 1.0), (3.0, 0.5), (4.0, 0.7), (1.0, 7.0)]
    assert hull(points) == [0, 1, 4]
