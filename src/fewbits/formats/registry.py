"""Formats by name. Adding a format: one file that calls `register`, and its module name in `_MODULES`."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, TypeVar

from fewbits.errors import FormatError
from fewbits.formats.format import Format

# Imported on first use. A module registers instances (`register`) or a family with a grammar of
# names (`register_family`), such as INT4_G64.
_MODULES = (
    "gguf_legacy",
    "gguf_k",
    "gguf_iq4",
    "gguf_mxfp4",
    "mxfp4_packed",
    "integer",
    "gptq",
    "awq",
    "mlx",
    "nbits",
    "qdq",
    "fp8",
    "fp8_block",
    "nvfp4",
    "nf4",
    "bitsandbytes_int8",
    "modelopt",
    "openvino",
    "xnnpack",
    "graph_integer",
    "with_activations",
)

F = TypeVar("F", bound=Format[Any])

_formats: dict[str, Format[Any]] = {}
_families: dict[str, tuple[re.Pattern[str], Callable[[re.Match[str]], Format[Any]], str]] = {}


def register(fmt: F) -> F:
    """Make a format known under its name; refuses a name that is taken."""
    if fmt.name in _formats:
        raise ValueError(f"a format named {fmt.name} is already registered")
    _formats[fmt.name] = fmt
    return fmt


def register_family(pattern: str, make: Callable[[re.Match[str]], Format[Any]], grammar: str) -> None:
    """Make every name that matches `pattern` known; `grammar` is how messages describe those names."""
    if pattern in _families:
        raise ValueError(f"a family with the pattern {pattern} is already registered")
    _families[pattern] = (re.compile(pattern), make, grammar)


@cache
def _load() -> None:
    for module in _MODULES:
        import_module(f"fewbits.formats.{module}")


def format_names() -> list[str]:
    """Names of all single formats, in order of registration, then the grammars of the families."""
    return [*single_formats(), *(grammar for _, _, grammar in _families.values())]


def single_formats() -> list[str]:
    """Names of the formats that aren't members of a family, in order of registration."""
    _load()
    return list(_formats)


def get_format(name: str) -> Format[Any]:
    """The format called `name`; upper or lower case.

    Raises:
        FormatError: no such format; the message lists those there are.
    """
    _load()
    key = name.upper()
    if key in _formats:
        return _formats[key]
    for pattern, make, _ in _families.values():
        if match := pattern.fullmatch(key):
            return make(match)
    raise FormatError("unknown format", found=repr(name), allowed=", ".join(format_names()))
