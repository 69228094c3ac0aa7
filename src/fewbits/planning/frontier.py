"""The frontier: for every size, the least predicted KL divergence that any plan of that size has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fewbits.planning.byte_size import format_bytes
from fewbits.planning.knapsack import Option, merge_tied, solve

NOTE = "Predicted KL: nats per token on text like the calibration's, an estimate; `evaluate` measures it."


@dataclass(frozen=True)
class FrontierPoint:
    """One plan of the frontier: bytes of its items, predicted KL in nats per token, item -> option name."""

    nbytes: int
    price: float
    choices: dict[str, str]


@dataclass(frozen=True)
class FilePoint:
    """The best file of one size.

    Attributes:
        bytes: of the whole file, header included.
        bits_per_weight: over all its tensors.
        predicted_kl: nats per token.
        formats: format name -> number of tensors, of those that can be quantized.
    """

    bytes: int
    bits_per_weight: float
    predicted_kl: float
    formats: dict[str, int]


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


def frontier_table(points: Sequence[FilePoint]) -> str:
    """The frontier as text: size of the file, bits per weight, predicted KL, and the formats used most."""
    lines = [f"{'size':>10}  {'bytes':>15}  {'bits/weight':>11}  {'predicted KL':>12}  formats (tensors)"]
    for point in points:
        counts = sorted(point.formats.items(), key=lambda item: (-item[1], item[0]))
        used = ", ".join(f"{name} {count}" for name, count in counts)
        lines.append(
            f"{format_bytes(point.bytes):>10}  {point.bytes:>15,}  {point.bits_per_weight:>11.2f}  "
            f"{point.predicted_kl:>12.5f}  {used}"
        )
    return "\n".join([*lines, NOTE])
