"""What values of GGUF metadata may be, so that a lying file is refused by the name of the key that lies.

Files come from anywhere: a size of 2^40, or a word in a number's place, must be an error rather than a loop without end
or a traceback. Tables of kinds stand where the keys are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from fewbits.checkpoint.gguf_constants import ValueType
from fewbits.errors import FewbitsError

_SHOWN = 60  # characters of a value that a message has


@dataclass(frozen=True)
class Kind:
    """What a value may be.

    Attributes:
        allowed: in words.
        holds: whether a value is one.
    """

    allowed: str
    holds: Callable[[Any], bool]


def whole(least: int, most: int) -> Kind:
    """Integers from `least` to `most`."""

    def holds(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most

    return Kind(f"a whole number from {least} to {most}", holds)


def number(least: float, most: float, *, or_zero: bool = False) -> Kind:
    """Finite numbers from `least` to `most`."""

    def holds(value: Any) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool) or not isfinite(value):
            return False
        return least <= value <= most or (or_zero and value == 0)

    return Kind(f"a number from {least:g} to {most:g}" + (", or 0" if or_zero else ""), holds)


WORD = Kind("a text", lambda value: isinstance(value, str))
SWITCH = Kind("true or false", lambda value: isinstance(value, bool))


def either(a: Kind, b: Kind) -> Kind:
    """Values of one kind or the other."""
    return Kind(f"{a.allowed}, or {b.allowed}", lambda value: a.holds(value) or b.holds(value))


def listed(kind: Kind) -> Kind:
    """A list with one value of a kind for each block."""
    return Kind(
        f"{kind.allowed} for each block",
        lambda value: isinstance(value, list) and bool(value) and all(map(kind.holds, value)),
    )


def by_block(kind: Kind) -> Kind:
    """One value for all blocks, or a list with one for each."""
    return either(kind, listed(kind))


def array(what: str, *elements: ValueType) -> Kind:
    """An array whose elements have one of these types; a list of the reader's callers is taken as it is."""

    def holds(value: Any) -> bool:
        return isinstance(value, list | tuple) or getattr(value, "element_type", None) in elements

    return Kind(f"a list of {what}", holds)


def require(
    values: Mapping[str, Any], kinds: Mapping[str, Kind], error: type[FewbitsError], prefix: str = ""
) -> None:
    """Refuse values that aren't of their kind; keys that aren't there are all right.

    Raises:
        FewbitsError: of the type `error`, naming the first key whose value can't be true.
    """
    for key, kind in kinds.items():
        if key in values and not kind.holds(values[key]):
            text = repr(values[key])
            raise error(
                f"{prefix}{key} in this GGUF file's metadata can't be true",
                found=text if len(text) <= _SHOWN else text[:_SHOWN] + " …",
                allowed=kind.allowed,
                action="The file is damaged, or made by a converter that fewbits doesn't know.",
            )
