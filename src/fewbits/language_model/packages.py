"""The packages that running a model takes."""

from __future__ import annotations

import importlib.util

from fewbits.errors import MissingExtraError


def require_models_extra(purpose: str) -> None:
    """Refuse early, by name, if a package for running models isn't installed.

    Raises:
        MissingExtraError: torch, transformers or tokenizers isn't there.
    """
    for package in ("torch", "transformers", "tokenizers"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "models", purpose)
