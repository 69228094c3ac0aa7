"""The fields of a request's JSON objects, each checked as it is read, and refusals in words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any

from fewbits.errors import RequestError

# Told by clients to a service with accounts; nothing here depends on them.
IGNORED = frozenset(("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"))


class Fields:
    """The fields of an object; null is the same as absent."""

    def __init__(self, body: Mapping[str, Any], known: Iterable[str], prefix: str = "") -> None:
        """The fields of `body`.

        Args:
            body: the object.
            known: names that it may have, besides those that are ignored everywhere.
            prefix: what its names begin with in messages.

        Raises:
            RequestError: it has another one.
        """
        self._body = body
        self._prefix = prefix
        allowed = frozenset(known)
        for name in body:
            if name not in allowed | IGNORED:
                raise RequestError(
                    f"the parameter {prefix}{name} is not known",
                    allowed=", ".join(sorted(allowed)),
                    code="unknown_parameter",
                    param=f"{prefix}{name}",
                )

    def get(self, name: str) -> Any:
        """The value as it is."""
        return self._body.get(name)

    def only(self, name: str, *allowed: Any) -> None:
        """Refuse other values than these, which mean that what the field stands for isn't wanted."""
        value = self.get(name)
        if value is not None and not any(value == usual for usual in allowed):
            raise wrong(self._prefix + name, value, " or ".join(map(json.dumps, allowed)))

    def boolean(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise wrong(self._prefix + name, value, "true or false")
        return value

    def number(self, name: str, default: float, least: float, most: float) -> float:
        """A number from `least` to `most`."""
        value = self.get(name)
        if value is None:
            return default
        if not is_number(value, (int, float)) or not isfinite(value) or not least <= value <= most:
            raise wrong(self._prefix + name, value, f"{least:g} to {most:g}")
        return float(value)

    def integer(self, name: str, default: int, least: int, most: int | None = None) -> int:
        """An integer from `least` to `most`."""
        value = self.optional_integer(name, least, most)
        return default if value is None else value

    def optional_integer(self, name: str, least: int, most: int | None = None) -> int | None:
        """As `integer`, or None."""
        value = self.get(name)
        if value is None:
            return None
        if not is_number(value, int) or value < least or (most is not None and value > most):
            allowed = (
                f"an integer of {least} or more" if most is None else f"an integer from {least} to {most}"
            )
            raise wrong(self._prefix + name, value, allowed)
        return int(value)


def encodable(param: str, text: str) -> str:
    """The text, unless JSON made halves of characters of it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise refused(param, "half of a surrogate pair", "text that can be written in UTF-8") from None
    return text


def is_number(value: object, kinds: type | tuple[type, ...]) -> bool:
    """Whether it is a number of this kind; true and false are none."""
    return isinstance(value, kinds) and not isinstance(value, bool)


def wrong(param: str, value: object, allowed: str) -> RequestError:
    """The refusal of a value, which is shown."""
    text = json.dumps(value, ensure_ascii=False)
    return refused(param, text if len(text) <= 80 else text[:79] + "…", allowed)


def refused(param: str, found: str, allowed: str) -> RequestError:
    """The refusal of a parameter."""
    return RequestError(f"{param} can't be served", found=found, allowed=allowed, param=param)


def kind(value: object) -> str:
    """What a value of JSON is, in words."""
    names: Mapping[type, str] = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "a number")
