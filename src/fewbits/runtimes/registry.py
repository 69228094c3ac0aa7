"""Runtimes by name. Adding one: a file NAME_driver.py beside this one, and a line in `_DRIVERS`."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from fewbits.errors import RuntimeFailedError
from fewbits.runtimes.drive import load_driver

# name -> driver
_DRIVERS = {
    "llama.cpp": "llama_cpp_driver.py",
    "transformers": "transformers_driver.py",
    "gptqmodel": "gptqmodel_driver.py",
    "mlx-lm": "mlx_lm_driver.py",
    "modelopt": "modelopt_driver.py",
    "vllm": "vllm_driver.py",
    "onnxruntime": "onnxruntime_driver.py",
    "onnxruntime-genai": "onnxruntime_genai_driver.py",
    "openvino": "openvino_driver.py",
    "executorch": "executorch_driver.py",
    "litert": "litert_driver.py",
}


def runtime_names() -> list[str]:
    """All runtimes that fewbits can run."""
    return list(_DRIVERS)


def driver_of(name: str) -> Path:
    """The driver's file.

    Raises:
        RuntimeFailedError: no such runtime; the message lists those there are.
    """
    if name not in _DRIVERS:
        raise RuntimeFailedError("unknown runtime", found=repr(name), allowed=", ".join(_DRIVERS))
    return Path(__file__).parent / _DRIVERS[name]


@cache
def requirements_of(name: str) -> tuple[str, ...]:
    """Requirements for pip of a runtime, in the versions that were tested, in order of installation."""
    return tuple(load_driver(driver_of(name)).REQUIREMENTS)
