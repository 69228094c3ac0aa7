import numpy as np
import pytest

from fewbits.errors import BudgetError
from fewbits.planning.frontier import NOTE, FilePoint, frontier, frontier_table
from fewbits.planning.knapsack import Option, solve


def items(count=40):
    rng = np.random.default_rng(3)
    options = {}
    for i in range(count):
        weights = 32 * int(rng.integers(1000, 50_000))
        worth = float(rng.lognormal(0, 1)) * weights * 1e-8
        options[f"t{i}"] = [
            Option(int(weights * bits / 8), worth * 4.0**-bits, name)
            for name, bits in (("Q4_0", 4.5), ("Q5_0", 5.5), ("Q8_0", 8.5))
        ]
    return options


def test_it_runs_from_the_smallest_plan_to_the_most_precise_one():
    options = items()
    points = frontier(options, points=12)
    assert len(points) == 12
    assert set(points[0].choices.values()) == {"Q4_0"}
    assert set(points[-1].choices.values()) == {"Q8_0"}
    assert points[-1].nbytes == sum(o[-1].nbytes for o in options.values())


def test_more_bytes_always_buy_a_lower_price_nearly_convexly():
    points = frontier(items(), points=16)
    nbytes = np.array([p.nbytes for p in points], dtype=float)
    price = np.array([p.price for p in points])
    assert (np.diff(nbytes) > 0).all()
    assert (np.diff(price) < 0).all()
    slopes = np.diff(price) / np.diff(nbytes)
    assert (np.diff(slopes) > -1e-2 * np.abs(slopes[:-1])).all()


def test_at_given_sizes_it_is_the_solution():
    options = items()
    sizes = [5_000_000 * k for k in (5, 4)]
    points = frontier(options, sizes)
    for size, point in zip(sorted(sizes), points, strict=True):
        solution = solve(options, size)
        assert (point.nbytes, point.price, point.choices) == (
            solution.nbytes,
            solution.price,
            solution.choices,
        )


def test_sizes_that_buy_nothing_are_left_out_and_too_small_ones_refused():
    options = {"a": [Option(10, 2.0, "x"), Option(20, 1.0, "y")]}
    assert [p.nbytes for p in frontier(options, [10, 15, 20, 30])] == [10, 20]
    assert [p.nbytes for p in frontier({"a": [Option(10, 2.0, "x")]})] == [10]
    with pytest.raises(BudgetError):
        frontier(options, [9])


def test_tied_items_move_together():
    options = {n: [Option(10, 2.0, "x"), Option(20, 1.0, "y")] for n in "ab"}
    assert [p.nbytes for p in frontier(options, points=6, tied=[["a", "b"]])] == [20, 40]


def test_the_table_gives_file_size_bits_and_loss():
    points = [FilePoint(1_234_567, 5.0, 0.0625, {"Q8_0": 1, "Q4_0": 2})]
    head, row, note = frontier_table(points).splitlines()
    assert head.split() == ["size", "bytes", "bits/weight", "predicted", "KL", "formats", "(tensors)"]
    assert row.split() == ["1.2", "MB", "1,234,567", "5.00", "0.06250", "Q4_0", "2,", "Q8_0", "1"]
    assert note == NOTE
