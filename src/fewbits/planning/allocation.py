"""Choosing formats under a budget, among uniform allocations with a format of its own for embedding and head.

The price of a format is its squared error on Gaussian numbers, measured once by running the format itself,
times the number of weights. It knows nothing of the model; sensitivities measured on the model replace it
where calibration is available.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from math import prod

import numpy as np

from fewbits.algorithms import rtn
from fewbits.algorithms.registry import NONE, algorithm_names
from fewbits.checkpoint.checkpoint import StoredTensor
from fewbits.errors import BudgetError, FormatError, PlanError
from fewbits.export.exporter import Exporter, OutputTensor
from fewbits.formats import get_format
from fewbits.planning.byte_size import format_bytes
from fewbits.planning.plan import DEFAULT_ALGORITHM, Plan, TensorChoice

# Errors of the embedding and the head reach the logits directly. Anchored on one comparison: with all else
# in 8 bits, a 5-bit tied embedding costs 1.7 times the loss per weight of 5-bit linear layers.
HEAD_WEIGHT = 1.7
_HEAD_ROLES = ("embedding", "head")


def plain_format(tensor: OutputTensor) -> TensorChoice:
    """The choice for a tensor that stays in floating point."""
    return TensorChoice(tensor.plain, NONE)


def exact_choice(name: str, exporter: Exporter) -> TensorChoice:
    """The choice of this very format, without a fallback."""
    return TensorChoice(name, NONE if name in exporter.plain_formats else DEFAULT_ALGORITHM)


def resolve(name: str, extents: Collection[tuple[int, int]], plain: Collection[str]) -> str:
    """The format for matrices of these extents: `name`, or the first of its fallbacks whose blocks divide them all.

    Args:
        name: of the format that was asked for.
        extents: see `OutputTensor.extent`.
        plain: dtypes, which hold everything.

    Raises:
        FormatError: neither the format nor any fallback holds such rows.
    """
    asked = name
    while name not in plain:
        fmt = get_format(name)
        if all(fmt.divides(*extent) for extent in extents):
            return fmt.name
        if fmt.fallback is None:
            raise FormatError(
                f"{asked} can't hold rows of {', '.join(map(str, sorted({n for _, n in extents})))}",
                found=f"block {fmt.block}, and no fallback",
                action="Choose another format or pin this tensor in a plan",
            )
        name = fmt.fallback
    return name


def choose(
    tensor: OutputTensor, name: str, exporter: Exporter, extents: Collection[tuple[int, int]] = ()
) -> TensorChoice:
    """`name` or its fallback for this tensor; floating point for tensors that aren't quantized.

    `extents` are those of the tensors that share its format.
    """
    if not tensor.quantizable:
        return plain_format(tensor)
    if name in exporter.plain_formats:
        return exact_choice(name, exporter)
    name = get_format(name).name
    actual = resolve(name, extents or (tensor.extent,), exporter.plain_formats)
    return replace(exact_choice(actual, exporter), requested=name if actual != name else None)


def uniform(
    tensors: Sequence[OutputTensor], exporter: Exporter, linear: str, head: str | None = None
) -> dict[str, TensorChoice]:
    """`linear` for every linear layer and `head` (default: the exporter's, or the same) for the embedding and the head.

    Where a block doesn't divide the rows, the fallback is one for all tensors that must share a format, and in
    containers without `fallbacks` for all tensors.
    """
    head = head or exporter.head_formats.get(linear.upper(), linear)
    asked = {t.name: head if t.role in _HEAD_ROLES else linear for t in tensors}
    extents = {t.name: {t.extent} for t in tensors if t.quantizable}
    if exporter.fallbacks:
        groups = exporter.tied(tensors)
    else:
        groups = [[name for name in extents if asked[name] == fmt] for fmt in dict.fromkeys(asked.values())]
    for group in groups:
        shared = set[tuple[int, int]]().union(*(extents[name] for name in group))
        extents.update(dict.fromkeys(group, shared))
    return {t.name: choose(t, asked[t.name], exporter, extents.get(t.name, ())) for t in tensors}


def refuse_fallbacks(choices: Mapping[str, TensorChoice], exporter: Exporter) -> None:
    """Refuse a format that was asked for and doesn't divide the rows, in a container without fallbacks.

    Raises:
        FormatError: with the nearest format that divides them.
    """
    if exporter.fallbacks:
        return
    for choice in choices.values():
        if choice.requested is not None:
            raise FormatError(
                f"--format gives all weights one format in {exporter.name}, and its block must divide all rows",
                found=f"{choice.requested}, whose block is {get_format(choice.requested).block}",
                allowed=f"{choice.format} and those of smaller blocks",
                action=f"Use --format {choice.format}, or leave it out",
            )


def tensor_nbytes(tensor: OutputTensor, name: str) -> int:
    """Exact bytes of a tensor in a format, in a plain dtype, or as it is stored in the source."""
    plain = {"F32": 4, "F16": 2, "BF16": 2}
    if name in plain:
        return prod(tensor.shape) * plain[name]
    if isinstance(tensor.source, StoredTensor) and tensor.source.dtype == name:
        return tensor.source.nbytes
    return get_format(name).nbytes(tensor.shape)


@cache
def gaussian_error(name: str) -> float:
    """Mean squared error of a format on unit Gaussian numbers (seed 0), by running it."""
    if name in ("F32", "F16", "BF16"):
        return {"F32": 0.0, "F16": 2.0**-24, "BF16": 2.0**-18}[name]
    weight = np.random.default_rng(0).standard_normal((64, 512), dtype=np.float32)
    rounded = rtn.quantize(weight, get_format(name).prepare([weight]))
    return float(np.mean((rounded.dequantize() - weight) ** 2))


def predicted_error(tensors: Sequence[OutputTensor], choices: Mapping[str, TensorChoice]) -> float:
    """Sum over tensors of weights times the format's squared error; lower is better."""
    return sum(
        prod(t.shape)
        * gaussian_error(choices[t.name].format)
        * (HEAD_WEIGHT if t.role in _HEAD_ROLES else 1.0)
        for t in tensors
        if t.quantizable
    )


def candidates(
    tensors: Sequence[OutputTensor], exporter: Exporter, pinned: Mapping[str, TensorChoice] | None = None
) -> list[tuple[int, float, dict[str, TensorChoice]]]:
    """Every pair (linear format, head format): tensor bytes, predicted error, choices; distinct ones only.

    Pinned tensors have their own choice in all of them.
    """
    names = (*exporter.candidates, "F16")
    seen: dict[tuple[str, ...], tuple[int, float, dict[str, TensorChoice]]] = {}
    for linear, head in product(names, names):
        choices = {**uniform(tensors, exporter, linear, head), **(pinned or {})}
        key = tuple(c.format for c in choices.values())
        if key not in seen:
            nbytes = sum(tensor_nbytes(t, choices[t.name].format) for t in tensors)
            seen[key] = nbytes, predicted_error(tensors, choices), choices
    return list(seen.values())


def allocate(
    tensors: Sequence[OutputTensor],
    exporter: Exporter,
    file_size: Callable[[Mapping[str, TensorChoice]], int],
    *,
    size: int | None = None,
    bits: float | None = None,
    pinned: Mapping[str, TensorChoice] | None = None,
) -> dict[str, TensorChoice]:
    """The candidate with the least predicted error at or under `size` bytes of file, or `bits` per weight.

    Args:
        tensors: what the file holds.
        exporter: its container.
        file_size: exact bytes of the whole file for some choices.
        size: bytes of the whole file, at most.
        bits: bits per weight over all tensors, at most.
        pinned: choices that are fixed.

    Raises:
        BudgetError: the smallest allocation is still too large; the message says how large it is.
    """
    weights = sum(prod(t.shape) for t in tensors)
    best: tuple[float, int] | None = None
    chosen: dict[str, TensorChoice] = {}
    smallest = None
    for nbytes, error, choices in candidates(tensors, exporter, pinned):
        cost = file_size(choices) if size is not None else 8 * nbytes / weights
        smallest = cost if smallest is None else min(smallest, cost)
        limit = size if size is not None else bits
        assert limit is not None
        if cost <= limit and (best is None or (error, nbytes) < best):
            best, chosen = (error, nbytes), choices
    if best is not None:
        return chosen
    if size is not None:
        assert smallest is not None
        raise BudgetError(
            "the size can't be reached", found=f"--size {format_bytes(size)} ({size:,} bytes)",
            allowed=f"at least {int(smallest):,} bytes ({format_bytes(smallest)}), the smallest possible",
        )  # fmt: skip
    raise BudgetError(
        "the bit width can't be reached", found=f"--bits {bits}", allowed=f"at least {smallest:.3f}"
    )


def check_choices(
    tensors: Sequence[OutputTensor], exporter: Exporter, choices: Mapping[str, TensorChoice]
) -> dict[str, TensorChoice]:
    """A plan's choices in file order, after checking that they fit the source and the target.

    Raises:
        PlanError: tensors missing or surplus, formats that the target can't hold or the rows don't fit.
    """
    missing = [t.name for t in tensors if t.name not in choices]
    surplus = sorted(set(choices) - {t.name for t in tensors})
    if missing or surplus:
        raise PlanError(
            "the plan doesn't fit the source",
            found=f"{len(missing)} tensors without an entry ({', '.join(missing[:3])}), "
            f"{len(surplus)} entries without a tensor ({', '.join(surplus[:3])})",
            action="Make a new one with: fewbits plan SOURCE -o plan.json",
        )
    checked = {}
    for tensor in tensors:
        choice = choices[tensor.name]
        if choice.format == tensor.plain:
            checked[tensor.name] = plain_format(tensor)
            continue
        plain = choice.format in exporter.plain_formats
        if not plain and get_format(choice.format).name not in exporter.formats:
            raise PlanError(
                f"{refusing(exporter)} {tensor.name} as the plan says", found=choice.format,
                allowed=", ".join((*exporter.formats, *exporter.plain_formats)),
            )  # fmt: skip
        if not plain and not tensor.quantizable:
            raise PlanError(
                f"the runtime needs {tensor.name} in floating point", found=choice.format,
                allowed=", ".join(exporter.plain_formats),
            )  # fmt: skip
        if choice.algorithm not in ("none", *algorithm_names()):
            raise PlanError(
                f"the plan names an unknown algorithm for {tensor.name}", found=choice.algorithm,
                allowed=", ".join(algorithm_names()),
            )  # fmt: skip
        if not plain:
            get_format(choice.format).check_extent(*tensor.extent)
        checked[tensor.name] = TensorChoice(
            choice.format, "none" if plain else choice.algorithm, choice.requested
        )
    _check_tied(checked, exporter.tied(tensors))
    return checked


def refusing(exporter: Exporter) -> str:
    """Who doesn't take a format, for messages: the hardware where there is one, else the container."""
    return f"{exporter.hardware} doesn't compute" if exporter.hardware else f"{exporter.name} can't hold"


def _check_tied(choices: Mapping[str, TensorChoice], tied: Sequence[Sequence[str]]) -> None:
    """Refuse a plan that gives tensors different formats which runtimes compute as one."""
    for group in tied:
        found = {choices[name].format: name for name in group}
        if len(found) > 1:
            shown = ", ".join(f"{name} is {fmt}" for fmt, name in found.items())
            raise PlanError(
                "runtimes compute these tensors as one, so they need one format", found=shown,
                action=f"Give the same format to {', '.join(group[:4])}{' …' if len(group) > 4 else ''}",
            )  # fmt: skip


def build_plan(
    target: str, tensors: Sequence[OutputTensor], choices: Mapping[str, TensorChoice], size: int, goal: str
) -> Plan:
    """The plan for these choices, its bits per weight computed exactly."""
    weights = sum(prod(t.shape) for t in tensors)
    nbytes = sum(tensor_nbytes(t, choices[t.name].format) for t in tensors)
    return Plan(target, dict(choices), size=size, bits_per_weight=round(8 * nbytes / weights, 4), goal=goal)
