"""What `--hardware` does: a container with nothing in it but formats that this hardware computes.

The facts are those of `targets`. An exporter that is restricted here restricts all that plans: automatic choices,
pins, plans that are read, fallbacks.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from fewbits.errors import PlanError
from fewbits.export.exporter import Exporter, OutputTensor
from fewbits.planning.asked_format import nearest
from fewbits.targets.hardware import HARDWARE
from fewbits.targets.registry import containers_on, target_of
from fewbits.targets.target import Kernel, Target

_NAMED = 2


def for_hardware(exporter: Exporter, container: str, hardware: str) -> Exporter:
    """A copy of an exporter that holds what this hardware computes.

    Args:
        exporter: of a container.
        container: what ``--to`` calls it.
        hardware: one of `HARDWARE`'s names.

    Raises:
        PlanError: the hardware isn't known or runs nothing of the container.
    """
    target = target_of(container)
    name = hardware.lower()
    if name not in HARDWARE:
        kinds = [
            f"{h.name} ({h.title})" for h in HARDWARE.values() if name in h.title.lower().replace(" ", "")
        ]
        raise PlanError(
            "no such hardware", found=repr(hardware), allowed=", ".join(HARDWARE),
            action=f"Use {' or '.join(kinds)}" if kinds else "See: fewbits targets",
        )  # fmt: skip
    if name not in target.hardware:
        others = containers_on(name)
        raise PlanError(
            f"{container} has no format that this hardware computes, as far as fewbits knows", found=repr(hardware),
            allowed=", ".join(target.hardware),
            action=f"Use --to {' or '.join(others)}" if others else "See: fewbits targets",
        )  # fmt: skip
    formats = tuple(f for f in exporter.formats if target.computes(f, name))
    restricted = copy.copy(exporter)
    restricted.formats = formats
    restricted.planned = tuple(f for f in exporter.candidates if f in formats) or formats
    if exporter.default_format not in formats:
        restricted.default_format = nearest(exporter.default_format, restricted.planned)
    restricted.hardware = name
    return restricted


def hardware_notes(
    container: str, hardware: str, tensors: Sequence[OutputTensor], formats: Mapping[str, str]
) -> tuple[str, ...]:
    """Which matrices the usual kernels don't take, for those of these formats (tensor name -> format)."""
    target = target_of(container)
    refused: dict[Kernel, list[str]] = {}
    shapes = {tensor.name: tensor.source.matrix for tensor in tensors}
    for tensor in tensors:
        kernel = _kernel(target, hardware, formats[tensor.name])
        if kernel is None:
            continue
        rows = sum(shapes[name][0] for name in tensor.fused or (tensor.name,))
        if rows % kernel.rows or shapes[tensor.name][1] % kernel.columns:
            refused.setdefault(kernel, []).append(tensor.name)
    return tuple(
        f"{kernel.name} takes matrices of a multiple of {kernel.rows} rows and {kernel.columns} columns, so that for "
        f"{len(names)} of these the runtime must have another kernel: {', '.join(names[:_NAMED])}"
        f"{' …' if len(names) > _NAMED else ''}"
        for kernel, names in refused.items()
    )


def _kernel(target: Target, hardware: str, name: str) -> Kernel | None:
    """The usual kernel for a format on this hardware, if it asks for shapes."""
    for scheme in target.schemes_on(hardware):
        if scheme.covers(name):
            kernel = scheme.kernel
            return kernel if kernel is not None and hardware in kernel.hardware else None
    return None
