"""Formats that the user fixes for some tensors: ``attn_v=Q6_K``, ``blk.0.*=Q8_0``, ``token_embd=Q5_1``.

A pattern with ``*``, ``?`` or ``[`` is matched against whole tensor names. Without them it means, in this order:
the tensor of that name; tensors whose dotted name has it as whole parts (so ``blk.1`` isn't ``blk.10`` and
``output`` isn't ``attn_output``); tensors whose name contains it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from fewbits.checkpoint.dtypes import PLAIN
from fewbits.errors import PlanError
from fewbits.formats import get_format
from fewbits.planning.knapsack import Option


@dataclass(frozen=True)
class Pin:
    """One pattern with the format for the tensors that it matches."""

    pattern: str
    format: str

    def matches(self, names: Collection[str]) -> list[str]:
        """Which of these tensor names it means."""
        if any(c in self.pattern for c in "*?["):
            return [n for n in names if fnmatchcase(n, self.pattern)]
        return (
            [n for n in names if n == self.pattern]
            or [n for n in names if f".{self.pattern}." in f".{n}."]
            or [n for n in names if self.pattern in n]
        )


def parse_pins(texts: Sequence[str]) -> list[Pin]:
    """Pins from ``PATTERN=FORMAT`` texts.

    Raises:
        PlanError: a text of another shape.
        FormatError: no such format; the message lists those there are.
    """
    pins = []
    for text in texts:
        pattern, equals, name = (part.strip() for part in text.rpartition("="))
        if not (pattern and equals and name):
            raise PlanError(
                "a pin can't be read", found=repr(text), allowed="PATTERN=FORMAT, for example attn_v=Q6_K"
            )
        pins.append(Pin(pattern, name.upper() if name.upper() in PLAIN else get_format(name).name))
    return pins


def pinned_formats(pins: Sequence[Pin], names: Collection[str]) -> dict[str, str]:
    """Tensor name -> pinned format, for the tensors that are pinned; of several pins the last one counts.

    Args:
        pins: in the order given.
        names: the quantizable tensors of the container.

    Raises:
        PlanError: a pin that matches none of them.
    """
    pinned = {}
    for pin in pins:
        matched = pin.matches(names)
        if not matched:
            shown = list(names)[:4]
            raise PlanError(
                "a pin matches no tensor that can be quantized", found=f"{pin.pattern}={pin.format}",
                allowed=f"names such as {', '.join(shown)}" if shown else None,
                action="See the tensors of a model with: fewbits plan MODEL",
            )  # fmt: skip
        pinned.update(dict.fromkeys(matched, pin.format))
    return pinned


def apply_pins(options: Mapping[str, Sequence[Option]], pinned: Mapping[str, str]) -> dict[str, list[Option]]:
    """The options with those of pinned tensors restricted to one.

    Raises:
        PlanError: the pinned format is not among a tensor's options: the container lacks it, its block doesn't
            divide the rows, or it wasn't priced.
    """
    restricted = {}
    for name, choices in options.items():
        if name not in pinned:
            restricted[name] = list(choices)
            continue
        restricted[name] = [o for o in choices if o.name == pinned[name]]
        if not restricted[name]:
            raise PlanError(
                f"{name} can't be pinned to this format", found=pinned[name],
                allowed=", ".join(o.name for o in choices),
            )  # fmt: skip
    return restricted
