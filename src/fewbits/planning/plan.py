"""The plan: which tensor gets which format and algorithm. A JSON file to read, edit and run again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from fewbits.errors import PlanError

PLAN_VERSION = 1
# What a tensor gets that nothing better is known of; calibration puts another in its place.
DEFAULT_ALGORITHM = "rtn"


@dataclass(frozen=True)
class TensorChoice:
    """What one tensor gets.

    Attributes:
        format: a format's name, or F32, F16, BF16 for tensors that stay in floating point.
        algorithm: how its codes are chosen; ``none`` for floating point.
        requested: the format asked for, where its block didn't divide the rows and `format` is its fallback.
    """

    format: str
    algorithm: str = DEFAULT_ALGORITHM
    requested: str | None = None


@dataclass(frozen=True)
class Plan:
    """Formats by tensor, with what they were chosen for.

    Attributes:
        target: container, e.g. ``gguf``.
        tensors: by the container's tensor name, in file order.
        size: predicted bytes of the whole file; exact, provenance included.
        bits_per_weight: over all tensors.
        goal: what the user asked for, e.g. ``--size 91MB``.
        predicted_kl: nats per token, where prices were measured on the model; None otherwise.
    """

    target: str
    tensors: Mapping[str, TensorChoice]
    size: int = 0
    bits_per_weight: float = 0.0
    goal: str = ""
    predicted_kl: float | None = None
    version: int = field(default=PLAN_VERSION)

    def formats(self) -> dict[str, str]:
        """Tensor name -> format name."""
        return {name: choice.format for name, choice in self.tensors.items()}

    def to_json(self) -> str:
        """One line a tensor, so that the file can be read, compared and edited."""
        head = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "tensors"}
        lines = [
            f"    {json.dumps(name)}: {json.dumps({k: v for k, v in asdict(c).items() if v is not None})}"
            for name, c in self.tensors.items()
        ]
        top = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items())
        return "{\n" + top + ',\n  "tensors": {\n' + ",\n".join(lines) + "\n  }\n}\n"

    def choices_json(self) -> str:
        """Only the choices, compact: what goes into the artifact as provenance."""
        return json.dumps(
            {name: {k: v for k, v in asdict(c).items() if v is not None} for name, c in self.tensors.items()},
            separators=(",", ":"),
        )


def parse_choices(data: Any, where: str) -> dict[str, TensorChoice]:
    """Tensor choices from JSON data; short form ``"name": "Q4_K"`` is taken as well.

    Raises:
        PlanError: wrong shape, or keys that a choice doesn't have.
    """
    if not isinstance(data, dict) or not data:
        raise PlanError(f"{where}: 'tensors' is not a table of tensor names", found=type(data).__name__)
    known = {f.name for f in fields(TensorChoice)}
    choices = {}
    for name, entry in data.items():
        entry = {"format": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or "format" not in entry or not set(entry) <= known:
            raise PlanError(
                f"{where}: the entry of {name} can't be read", found=json.dumps(entry)[:200],
                allowed=f"a format's name, or a table with {', '.join(sorted(known))}",
            )  # fmt: skip
        choices[name] = TensorChoice(**entry)
    return choices


def read_plan(path: str | Path) -> Plan:
    """A plan from its file.

    Raises:
        PlanError: the file is missing, isn't JSON, or isn't a plan.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"the plan {path} can't be read", found=error.strerror or str(error)) from error
    except ValueError as error:
        raise PlanError(f"the plan {path} isn't JSON", found=str(error)) from error
    known = {f.name for f in fields(Plan)}
    if not isinstance(data, dict) or not {"target", "tensors"} <= set(data) <= known:
        found = ", ".join(map(str, data)) if isinstance(data, dict) else type(data).__name__
        raise PlanError(f"{path} isn't a plan", found=f"the keys {found}", allowed=", ".join(sorted(known)))
    if data.get("version", PLAN_VERSION) != PLAN_VERSION:
        raise PlanError(f"the plan {path} has another version", found=data["version"], allowed=PLAN_VERSION)
    tensors = parse_choices(data.pop("tensors"), str(path))
    return Plan(tensors=tensors, **data)
