"""What the user asked for, and the choice of formats that needs no calibration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fewbits.checkpoint.dtypes import PLAIN
from fewbits.errors import PlanError
from fewbits.export.exporter import Exporter, OutputTensor
from fewbits.planning.allocation import allocate, check_choices, exact_choice, refuse_fallbacks, uniform
from fewbits.planning.asked_format import require_held
from fewbits.planning.byte_size import parse_bytes
from fewbits.planning.pins import parse_pins, pinned_formats
from fewbits.planning.plan import TensorChoice, read_plan

FileSize = Callable[[Mapping[str, TensorChoice]], int]


@dataclass(frozen=True)
class Goal:
    """At most one of format, bits, size, max_kl, plan and like; none: the default.

    Attributes:
        format: one format for all layers.
        bits: average bits per weight, at most.
        size: bytes of the output, at most; an int or text such as ``91MB``.
        max_kl: predicted KL divergence in nats per token, at most; needs a calibrated effort.
        plan: a plan file.
        like: an artifact made by fewbits, whose plan, effort and seed are taken.
        pins: ``PATTERN=FORMAT`` texts that fix the format of some tensors.
    """

    format: str | None = None
    bits: float | None = None
    size: str | int | None = None
    max_kl: float | None = None
    plan: str | Path | None = None
    like: str | Path | None = None
    pins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        given = [
            name
            for name in ("format", "bits", "size", "max_kl", "plan", "like")
            if getattr(self, name) is not None
        ]
        if len(given) > 1:
            raise PlanError(
                "more than one goal was given",
                found=" and ".join(f"--{name.replace('_', '-')}" for name in given),
                allowed="one of --format, --bits, --size, --max-kl, --plan and --like",
            )
        if self.format is not None and self.format.upper() in PLAIN:
            object.__setattr__(self, "format", self.format.upper())  # as other formats, in lower case too

    @property
    def optimised(self) -> bool:
        """Whether formats are chosen under a budget."""
        return self.size is not None or self.bits is not None or self.max_kl is not None

    @property
    def plain(self) -> bool:
        """Whether nothing is quantized, so that no model's inputs need be looked at."""
        if self.format not in PLAIN:
            return False
        return all(pin.format in PLAIN for pin in parse_pins(self.pins))

    def describe(self, default: str) -> str:
        """The goal as it would be typed; `default` is the format where there is none."""
        shown = "--plan" if self.plan is not None else f"--format {self.format or default}"
        for name in ("bits", "size", "max_kl"):
            if (value := getattr(self, name)) is not None:
                shown = f"--{name.replace('_', '-')} {value}"
        return " ".join([shown, *(f"--pin {pin}" for pin in self.pins)])


def rounded_choices(
    tensors: Sequence[OutputTensor], exporter: Exporter, goal: Goal, file_size: FileSize
) -> dict[str, TensorChoice]:
    """Choices for effort fast: uniform, with a format of its own for embedding and head.

    Raises:
        PlanError: the goal needs calibration, or can't be reached.
    """
    if goal.max_kl is not None:
        raise PlanError("--max-kl needs to know the model", action="Add --effort balanced")
    if goal.plan is not None:
        return dict(read_plan(goal.plan).tensors)
    if goal.size is None and goal.bits is None:
        return pinned_uniform(tensors, exporter, goal)
    pinned = pinned_choices(tensors, exporter, goal)
    size = None if goal.size is None else parse_bytes(goal.size)
    return allocate(tensors, exporter, file_size, size=size, bits=goal.bits, pinned=pinned)


def pinned_tensors(tensors: Sequence[OutputTensor], goal: Goal) -> dict[str, str]:
    """Tensor name -> format, for the tensors that the goal pins.

    Raises:
        PlanError, FormatError: a pin that can't be read, or matches no tensor that can be quantized.
    """
    return pinned_formats(parse_pins(goal.pins), [t.name for t in tensors if t.quantizable])


def pinned_choices(
    tensors: Sequence[OutputTensor], exporter: Exporter, goal: Goal
) -> dict[str, TensorChoice]:
    """The choices that the goal's pins make.

    Raises:
        PlanError, FormatError: as `pinned_tensors`, or a format that the container can't hold.
    """
    pinned = pinned_tensors(tensors, goal)
    for name in dict.fromkeys(pinned.values()):
        require_held(name, exporter)
    return {n: exact_choice(f, exporter) for n, f in pinned.items()}


def pinned_uniform(
    tensors: Sequence[OutputTensor], exporter: Exporter, goal: Goal
) -> dict[str, TensorChoice]:
    """The goal's format, or the default, for all but what is pinned.

    Raises:
        PlanError: the goal's format isn't one of the container's.
        FormatError: there is no such format, or it doesn't divide the rows where there are no fallbacks.
    """
    if goal.format is not None:
        require_held(goal.format, exporter, "--format ")
    pinned = pinned_choices(tensors, exporter, goal)
    others = [t for t in tensors if t.name not in pinned]
    choices = uniform(others, exporter, goal.format or exporter.default_format)
    if goal.format is not None:
        refuse_fallbacks(choices, exporter)
    return {t.name: pinned.get(t.name) or choices[t.name] for t in tensors}


def check_goal(
    tensors: Sequence[OutputTensor], exporter: Exporter, metadata: Mapping[str, Any], goal: Goal
) -> None:
    """Refuse before a calibration what would be refused after it.

    Raises:
        FewbitsError: pins, a format or a plan that the container can't hold.
    """
    if goal.optimised or goal.like is not None:
        pinned_tensors(tensors, goal)
        return
    # Whatever calibration will find for activations, it takes the same place.
    tensors = [replace(tensor, input_scale=lambda _: 1.0) for tensor in tensors]
    found = rounded_choices(tensors, exporter, goal, lambda _: 0)
    formats = {name: choice.format for name, choice in check_choices(tensors, exporter, found).items()}
    exporter.layout(tensors, formats, metadata)
