"""Multiple-choice knapsack: one option per tensor, the least total price within a number of bytes.

The linear relaxation is solved exactly: on the lower convex hull of each item's options, steps are taken in
order of price saved per byte until one doesn't fit. That step's share gives the bound (Sinha and Zoltners,
"The multiple-choice knapsack problem", Operations Research 1979). Its item is where the search branches: one
option of it is fixed at a time, so that a few very large items, such as an embedding, are decided exactly.
Every node also yields a plan, by filling what is left and swapping pairs.

Letters: items i, options o; an item's options are its hull (undominated, convex) and the rest.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, pairwise
from math import fsum

import numpy as np
import numpy.typing as npt

from fewbits.errors import BudgetError, PlanError

MAX_NODES = 48  # of the search tree; past these the gap is what it is
MAX_SWAPS = 400
POLISHED_NODES = 8  # how many of the nodes get the pair swaps

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Option:
    """One choice for an item: exact bytes, price (predicted KL in nats per token) and the format's name."""

    nbytes: int
    price: float
    name: str


@dataclass(frozen=True)
class Solution:
    """One option per item, with the proof of how good it is.

    Attributes:
        choices: item -> option name.
        nbytes: total bytes.
        price: total price.
        bound: no choice of options within the limit has less: a price for `solve`, bytes for `solve_for_price`.
        gap: how far the solution is above `bound`, in the same unit; 0 proves it optimal.
    """

    choices: dict[str, str]
    nbytes: int
    price: float
    bound: float
    gap: float


@dataclass(frozen=True)
class _Problem:
    """Options with what is limited (`weight`) and what is minimised (`cost`), undominated, by rising weight.

    Attributes:
        items: names, sorted.
        options: per item, its options.
        weight, cost: float64 [M], all options one item after another.
        owner: int [M], the item of each.
        start: int [items + 1], where each item's options begin.
        step_slope, step_weight, step_cost, step_item, step_option: the hulls' steps, best saving first; weight
            added, cost change (negative), item, and the option that the step leads to.
    """

    items: list[str]
    options: list[list[Option]]
    weight: Doubles
    cost: Doubles
    owner: npt.NDArray[np.intp]
    start: npt.NDArray[np.intp]
    step_slope: Doubles
    step_weight: Doubles
    step_cost: Doubles
    step_item: npt.NDArray[np.intp]
    step_option: npt.NDArray[np.intp]


@dataclass(frozen=True)
class _Relaxed:
    """A node's linear relaxation: its bound, the choice rounded down, and the item that was cut (or None)."""

    bound: float
    chosen: npt.NDArray[np.intp]
    cut: int | None


def hull(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the lower convex hull of (weight, cost) points, by rising weight and strictly falling cost."""
    order = sorted(range(len(points)), key=lambda i: (*points[i], i))
    kept: list[int] = []
    for i in order:
        if kept and points[i][1] >= points[kept[-1]][1]:
            continue
        while len(kept) > 1:
            (w0, c0), (w1, c1), (w2, c2) = points[kept[-2]], points[kept[-1]], points[i]
            if (c0 - c1) * (w2 - w1) > (c1 - c2) * (w1 - w0):
                break
            kept.pop()
        if kept and points[kept[-1]][0] == points[i][0]:
            kept.pop()
        kept.append(i)
    return kept


def merge_tied(
    options: Mapping[str, Sequence[Option]], tied: Sequence[Sequence[str]]
) -> tuple[dict[str, list[Option]], dict[str, list[str]]]:
    """Items that must share a choice as one item, under the first one's name; and who is in each.

    Raises:
        PlanError: the members of a group have no option in common.
    """
    members = {name: [name] for name in options}
    merged = {name: list(choices) for name, choices in options.items()}
    for group in tied:
        tables = [{o.name: o for o in merged.pop(name)} for name in group]
        shared = [n for n in tables[0] if all(n in t for t in tables)]
        if not shared:
            raise PlanError("tensors that must share a format have none in common", found=", ".join(group))
        first = group[0]
        members[first] = [m for name in group for m in members.pop(name)]
        merged[first] = [
            Option(sum(t[n].nbytes for t in tables), fsum(t[n].price for t in tables), n) for n in shared
        ]
    return merged, members


def _problem(options: Mapping[str, Sequence[Option]], *, by_price: bool) -> _Problem:
    items, kept, steps = sorted(options), [], []
    start = [0]
    for i, name in enumerate(items):
        if not options[name]:
            raise PlanError(f"there is no format for {name}", found="no option that fits its rows")
        pairs = {
            o: (o.price, float(o.nbytes)) if by_price else (float(o.nbytes), o.price) for o in options[name]
        }
        best: list[Option] = []
        for option in sorted(pairs, key=lambda o: (*pairs[o], o.name)):
            if not best or pairs[option][1] < pairs[best[-1]][1]:
                best.append(option)
        points = [pairs[o] for o in best]
        corners = hull(points)
        for a, b in pairwise(corners):
            dw, dc = points[b][0] - points[a][0], points[b][1] - points[a][1]
            steps.append((dc / dw, i, start[-1] + b, dw, dc))
        kept.append(best)
        start.append(start[-1] + len(best))
    steps.sort()
    flat = [o for best in kept for o in best]
    nbytes = np.array([o.nbytes for o in flat], dtype=np.float64)
    price = np.array([o.price for o in flat], dtype=np.float64)
    column = [np.array(c) for c in zip(*steps, strict=True)] or [np.empty(0, np.intp)] * 5
    return _Problem(
        items, kept, price if by_price else nbytes, nbytes if by_price else price,
        np.repeat(np.arange(len(items)), np.diff(start)), np.array(start, dtype=np.intp),
        -column[0].astype(np.float64), column[3].astype(np.float64), column[4].astype(np.float64),
        column[1].astype(np.intp), column[2].astype(np.intp),
    )  # fmt: skip


def _relax(problem: _Problem, fixed: Mapping[int, int], limit: float) -> _Relaxed | None:
    """The linear relaxation with some items fixed (item -> option), or None where nothing fits."""
    chosen = problem.start[:-1].copy()
    free = np.ones(len(problem.items), dtype=bool)
    for item, option in fixed.items():
        chosen[item], free[item] = option, False
    steps = np.flatnonzero(free[problem.step_item])
    left = limit - float(problem.weight[chosen].sum())
    if left < 0:
        return None
    added = np.cumsum(problem.step_weight[steps])
    taken = int(np.searchsorted(added, left, side="right"))
    # Steps of one item come in order of its hull, so the last one taken is where it stands.
    chosen[problem.step_item[steps[:taken]]] = problem.step_option[steps[:taken]]
    cost = float(problem.cost[chosen].sum())
    if taken == len(steps):
        return _Relaxed(cost, chosen, None)
    cut = steps[taken]
    rest = left - (float(added[taken - 1]) if taken else 0.0)
    bound = cost - rest * float(problem.step_slope[cut])
    return _Relaxed(bound, chosen, int(problem.step_item[cut]))


def _fill(problem: _Problem, chosen: npt.NDArray[np.intp], limit: float) -> npt.NDArray[np.intp]:
    """Spend what is left on single changes, the best saving per weight first."""
    chosen = chosen.copy()
    while True:
        now = chosen[problem.owner]
        dw, saved = problem.weight - problem.weight[now], problem.cost[now] - problem.cost
        left = limit - float(problem.weight[chosen].sum())
        useful = np.flatnonzero((dw > 0) & (dw <= left) & (saved > 0))
        if not len(useful):
            return chosen
        pick = useful[np.argmax(saved[useful] / dw[useful])]
        chosen[problem.owner[pick]] = pick


def _swap(problem: _Problem, chosen: npt.NDArray[np.intp], limit: float) -> bool:
    """One change up paid for by one change down of another item, the pair that saves most; False: none does."""
    now = chosen[problem.owner]
    dw, dc = problem.weight - problem.weight[now], problem.cost - problem.cost[now]
    left = limit - float(problem.weight[chosen].sum())
    down, up = np.flatnonzero(dw < 0), np.flatnonzero((dw > left) & (dc < 0))
    if not len(down) or not len(up):
        return False
    # Downs by falling weight freed; of each prefix the cheapest, and the cheapest of another item.
    down = down[np.argsort(dw[down], kind="stable")]
    first = second = -1
    best = np.empty((len(down), 2), dtype=np.intp)
    for k, d in enumerate(down):
        if first < 0 or dc[d] < dc[first]:
            if first >= 0 and problem.owner[first] != problem.owner[d]:
                second = first
            first = int(d)
        elif problem.owner[d] != problem.owner[first] and (second < 0 or dc[d] < dc[second]):
            second = int(d)
        best[k] = first, second
    able = np.searchsorted(dw[down], left - dw[up], side="right") - 1
    up, able = up[able >= 0], able[able >= 0]
    partner = best[able, 0]
    partner = np.where(problem.owner[partner] == problem.owner[up], best[able, 1], partner)
    up, partner = up[partner >= 0], partner[partner >= 0]
    if not len(up):
        return False
    change = dc[up] + dc[partner]
    k = int(np.argmin(change))
    if change[k] >= -1e-12 * float(np.abs(problem.cost[chosen]).sum()):
        return False
    chosen[problem.owner[up[k]]], chosen[problem.owner[partner[k]]] = up[k], partner[k]
    return float(problem.weight[chosen].sum()) <= limit


def _improve(problem: _Problem, chosen: npt.NDArray[np.intp], limit: float) -> npt.NDArray[np.intp]:
    """Fill and swap until neither helps, or `MAX_SWAPS` are done."""
    chosen = _fill(problem, chosen, limit)
    for _ in range(MAX_SWAPS):
        trial = chosen.copy()
        if not _swap(problem, trial, limit):
            break
        chosen = _fill(problem, trial, limit)
    return chosen


def _search(problem: _Problem, limit: float) -> tuple[npt.NDArray[np.intp], float] | None:
    """Best-first branch and bound: the best choice found and a bound; None where nothing fits."""
    root = _relax(problem, {}, limit)
    if root is None:
        return None
    serial = count()
    best, best_cost = root.chosen, np.inf
    heap: list[tuple[float, int, dict[int, int], _Relaxed]] = [(root.bound, next(serial), {}, root)]
    closed = np.inf  # least bound among the leaves: relaxations that turned out whole
    for visited in range(MAX_NODES):
        if not heap or heap[0][0] >= best_cost:
            break
        bound, _, fixed, node = heapq.heappop(heap)
        polish = _improve if visited < POLISHED_NODES else _fill
        found = polish(problem, node.chosen, limit)
        cost = fsum(problem.cost[found])
        if cost < best_cost:
            best, best_cost = found, cost
        if node.cut is None:
            closed = min(closed, bound)
            continue
        for option in range(problem.start[node.cut], problem.start[node.cut + 1]):
            below = {**fixed, node.cut: option}
            child = _relax(problem, below, limit)
            if child is not None and child.bound < best_cost:
                heapq.heappush(heap, (max(bound, child.bound), next(serial), below, child))
    bound = min(closed, best_cost, heap[0][0] if heap else np.inf)
    return best, float(bound)


def _solution(
    problem: _Problem, chosen: npt.NDArray[np.intp], bound: float, members: Mapping[str, list[str]]
) -> Solution:
    picked = {item: problem.options[i][chosen[i] - problem.start[i]] for i, item in enumerate(problem.items)}
    choices = {name: o.name for item, o in picked.items() for name in members[item]}
    nbytes = sum(o.nbytes for o in picked.values())
    return Solution(choices, nbytes, fsum(o.price for o in picked.values()), bound, 0.0)


def solve(
    options: Mapping[str, Sequence[Option]], budget: int, *, tied: Sequence[Sequence[str]] = ()
) -> Solution:
    """The least price within `budget` bytes.

    Args:
        options: item -> its options.
        budget: bytes of all items together, at most.
        tied: groups of items that must get the same option name.

    Raises:
        BudgetError: the smallest options together are larger than the budget.
        PlanError: an item, or a tied group, without an option.
    """
    merged, members = merge_tied(options, tied)
    problem = _problem(merged, by_price=False)
    found = _search(problem, float(budget))
    if found is None:
        least = int(problem.weight[problem.start[:-1]].sum())
        raise BudgetError(
            "the size can't be reached", found=f"{budget:,} bytes for the weights",
            allowed=f"at least {least:,}",
        )  # fmt: skip
    solution = _solution(problem, *found, members)
    bound = min(solution.bound, solution.price)
    return replace(solution, bound=bound, gap=solution.price - bound)


def solve_for_price(
    options: Mapping[str, Sequence[Option]], limit: float, *, tied: Sequence[Sequence[str]] = ()
) -> Solution:
    """The fewest bytes whose total price is at most `limit` (up to the rounding of sums, 1e-12 of it).

    `bound` and `gap` of the result are in bytes. Arguments as for `solve`.

    Raises:
        BudgetError: the most precise options together still cost more.
        PlanError: an item, or a tied group, without an option.
    """
    merged, members = merge_tied(options, tied)
    problem = _problem(merged, by_price=True)
    found = _search(problem, limit * (1 + 1e-12))
    if found is None:
        least = fsum(problem.weight[problem.start[:-1]])
        raise BudgetError(
            "the loss can't be reached", found=f"at most {limit:g} nats per token",
            allowed=f"at least {least:.3g}, with the most precise formats there are",
        )  # fmt: skip
    solution = _solution(problem, *found, members)
    bound = min(solution.bound, float(solution.nbytes))
    return replace(solution, bound=bound, gap=solution.nbytes - bound)
