"""Runs one driver in a runtime's own Python, where fewbits may not be installed.

    PYTHON -P drive.py DRIVER.py MODEL REQUEST.npz ANSWER.npz

    REQUEST.npz   tokens int64 [T]; count int64 [], tokens to generate (optional)
    ANSWER.npz    logits float32 [T, V]; generated int64 [at most count]; about: JSON with versions and arithmetic

A driver is a file with

    REQUIREMENTS = ("mlx-lm==0.32.2", …)                     pip requirements that were tested, in order of installation
    def logits(model, tokens) -> float32 [T, V]              of one sequence, as the runtime computes them
    def generate(model, tokens, count) -> list[int]          greedy continuation by the runtime's own loop

and, where these don't say it all,

    def requirements(model) -> tuple[str, …]                 those of REQUIREMENTS that this artifact needs
    def arithmetic(model) -> str                             dtype that activations have: float32 unless it says so
    def rounds_activations(model) -> bool                    whether they are rounded where the artifact says so: True
                                                             unless it says so
    def kv_cache(model) -> str                               how keys and values are kept, as `fewbits evaluate` names
                                                             it: "float" if as they are; "" as the artifact says

Failures are one line on standard error, {"fewbits": kind, "message": …}, and exit status 1. Kinds: ``missing`` with
"requirements", ``unable`` (the driver has no such function), ``failed`` (an exception of the runtime).
This file imports the standard library and NumPy only.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

# What a driver may say of an artifact -> what holds where it doesn't.
_FACTS: dict[str, str | bool] = {"arithmetic": "float32", "rounds_activations": True, "kv_cache": ""}
_NAME = re.compile(r"[A-Za-z0-9._-]+")


class DriveError(Exception):
    """A failure to be told in one line of JSON."""

    def __init__(self, kind: str, message: str, **more: object) -> None:
        super().__init__(message)
        self.line = json.dumps({"fewbits": kind, "message": message, **more})


def load_driver(path: Path) -> ModuleType:
    """The driver as a module, by where its file lies."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def package_of(requirement: str) -> str:
    """Name of the package that a pip requirement is about: ``mlx[cpu]==0.32.4`` -> ``mlx``."""
    match = _NAME.match(requirement)
    return match[0] if match else requirement


def versions_of(requirements: tuple[str, ...]) -> dict[str, str | None]:
    """Installed version of each required package, None where it isn't installed."""
    found: dict[str, str | None] = {}
    for package in map(package_of, requirements):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def answer(driver: ModuleType, model: str, request: dict[str, Any]) -> dict[str, Any]:
    """What ANSWER.npz is to hold.

    Raises:
        DriveError: a package isn't installed, the driver can't do what is asked, or the runtime fails.
    """
    needed = driver.requirements(model) if hasattr(driver, "requirements") else driver.REQUIREMENTS
    versions = versions_of(tuple(needed))
    if missing := [name for name, version in versions.items() if version is None]:
        raise DriveError("missing", ", ".join(missing), requirements=list(needed))
    tokens, count = [int(token) for token in request["tokens"]], int(request.get("count", 0))
    if count and not hasattr(driver, "generate"):
        raise DriveError("unable", "the driver has no loop that generates")
    try:
        logits = np.asarray(driver.logits(model, tokens), np.float32)
        generated = driver.generate(model, tokens, count) if count else []
        about = {name: _fact(driver, name, model, usual) for name, usual in _FACTS.items()}
    except ImportError as error:
        raise DriveError("missing", str(error), requirements=list(needed)) from error
    except Exception as error:  # whatever the runtime raises is the answer
        raise DriveError("failed", f"{type(error).__name__}: {error}") from error
    told = json.dumps({"versions": versions, **about})
    return {"logits": logits, "generated": np.array(generated, np.int64), "about": np.array(told)}


def _fact(driver: ModuleType, name: str, model: str, usual: str | bool) -> str | bool:
    """What the driver says of how it runs the model."""
    return type(usual)(getattr(driver, name)(model)) if hasattr(driver, name) else usual


def main(driver: str, model: str, request: str, written: str) -> int:
    """Exit status."""
    try:
        with np.load(request) as arrays:
            made = answer(load_driver(Path(driver)), model, dict(arrays))
        np.savez(written, **made)
    except DriveError as error:
        sys.stderr.write("\n" + error.line + "\n")
        return 1
    return 0


if __name__ == "__main__":
    status = main(*sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # some runtimes' threads outlive their work
