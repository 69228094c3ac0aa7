"""The frontier: for every size, the least predicted KL divergence that any plan of that size has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fewbits.planning.byte_size import format_bytes
from fewbits.planning.knapsack import Option, merge_tied, solve

# Every llama.cpp runtime rounds activations to 8 bits as well, whatever the weights' format is.
NOTE = "Predicted KL is that of the weights alone; runtimes that round activations to 8 bits add a constant."


@dataclass(frozen=True)
class FrontierPoint:
    """One plan of the frontier: bytes of its items, predicted KL in nats per token, item -> option name."""

    nbytes: int
    price: float
    choices: dict[str, str]


def frontier(
    options: Mapping[str, Sequence[Option]],
    sizes: Sequence[int] | None = None,
    *,
    points: int = 24,
    tied: Sequence[Sequence[str]] = (),
) -> list[FrontierPoint]:
    """The best plan at each size, by rising bytes and falling price.

    Args:
        options: the knapsack's items.
        sizes: budgets in bytes for the items; None for `points` budgets at equal ratios, from the smallest plan
            to the one where every item has its lowest price.
        points: how many budgets, where `sizes` is None; at least 2.
        tied: as in `knapsack.solve`.

    Returns:
        At most one point per budget; those that cost more bytes for no lower price are left out.

    Raises:
        BudgetError: one of `sizes` is below the smallest plan.
    """
    if sizes is None:
        merged, _ = merge_tied(options, tied)
        least = sum(min(o.nbytes for o in choices) for choices in merged.values())
        most = sum(min((o.price, o.nbytes) for o in choices)[1] for choices in merged.values())
        ratio = (most / max(least, 1)) ** (1 / max(points - 1, 1))
        sizes = [least, *(int(least * ratio**k) for k in range(1, points - 1)), most]
    found: list[FrontierPoint] = []
    for size in sorted(set(sizes)):
        solution = solve(options, size, tied=tied)
        if not found or solution.price < found[-1].price:
            found.append(FrontierPoint(solution.nbytes, solution.price, solution.choices))
    return found


def frontier_table(points: Sequence[FrontierPoint], *, weights: int, fixed: int = 0) -> str:
    """The frontier as text: size of the file, bits per weight, predicted KL, and the formats used most.

    Args:
        points: from `frontier`.
        weights: numbers in all tensors of the file.
        fixed: bytes of the file beside the items: header and tensors that stay in floating point.
    """
    lines = [f"{'size':>10}  {'bits/weight':>11}  {'predicted KL':>12}  formats (tensors)"]
    for point in points:
        size = point.nbytes + fixed
        counts: dict[str, int] = {}
        for name in point.choices.values():
            counts[name] = counts.get(name, 0) + 1
        used = ", ".join(f"{n} {c}" for n, c in sorted(counts.items(), key=lambda item: (-item[1], item[0])))
        lines.append(f"{format_bytes(size):>10}  {8 * size / weights:>11.2f}  {point.price:>12.5f}  {used}")
    return "\n".join([*lines, NOTE])
