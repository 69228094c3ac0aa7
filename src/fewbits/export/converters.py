"""Converters by name. Adding one: one file (or folder) with a class, and one line in `_CONVERTERS`."""

from __future__ import annotations

import importlib.util
from functools import cache
from importlib import import_module

from fewbits.errors import MissingExtraError
from fewbits.export.converter import Converter

# name -> module and class, imported on first use
_CONVERTERS = {
    "openvino": ("fewbits.export.openvino.converter", "OpenvinoConverter"),
    "executorch": ("fewbits.export.executorch.converter", "ExecutorchConverter"),
    "coreml": ("fewbits.export.coreml.converter", "CoremlConverter"),
    "litert": ("fewbits.export.litert.converter", "LitertConverter"),
}


def converter_names() -> list[str]:
    """Names of all containers that are written by their runtime's library."""
    return list(_CONVERTERS)


def find_converter(name: str) -> Converter | None:
    """The converter called `name`, upper or lower case; None if there is none, as for what an `Exporter` writes."""
    return _make(*_CONVERTERS[name.lower()]) if name.lower() in _CONVERTERS else None


def require_packages(converter: Converter) -> None:
    """Refuse early, by name, if a package of the converter's library isn't installed.

    Raises:
        MissingExtraError: with the command that installs it.
    """
    for package in converter.packages:
        if not is_installed(package):
            raise MissingExtraError(package, converter.extra, f"--to {converter.name}")


def is_installed(package: str) -> bool:
    """Whether a package, dots allowed, can be imported; it isn't imported, but those above it are."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


@cache
def _make(module: str, class_name: str) -> Converter:
    converter: Converter = getattr(import_module(module), class_name)()
    return converter
