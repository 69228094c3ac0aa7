"""Virtual environments of the rows, made once by their requirements.txt; rows that ask for the same share one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from cases import ROWS, row_names

from fewbits import _native

SOURCES = ROWS.parent / "src"
NATIVE = Path(_native.__file__)
_links = tempfile.TemporaryDirectory(prefix="fewbits-sources-")
# Packages pull builds of these for CUDA, which can't be imported beside PyTorch for CPUs; language models need none.
_BROKEN = ("torchvision", "torchaudio", "torchcodec")
_VERSIONS = """
import importlib.metadata, json
print(json.dumps({d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}))
"""


def environment(row: str, kept: Path, given: str | None = None) -> Path:
    """The row's interpreter, in an environment that is made now if it isn't there.

    Args:
        row: its name.
        kept: folder of all environments.
        given: an environment made otherwise, to be used as it is.
    """
    if given is not None:
        return Path(given) / "bin" / "python"
    wanted = _requirements(row)
    folder = kept / next(name for name in row_names() if _requirements(name) == wanted)
    done = folder / "installed.txt"
    if done.exists() and done.read_text() == wanted:
        return folder / "bin" / "python"
    print("making", folder, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # torch first and alone: what follows then takes the one that is there.
    for torch in (line for line in wanted.splitlines() if line.startswith("torch==")):
        subprocess.run([*pip, torch], check=True)
    subprocess.run([*pip, "--requirement", ROWS / row / "requirements.txt"], check=True)
    subprocess.run([*pip[:3], "uninstall", "--quiet", "--yes", *_BROKEN], check=True)
    done.write_text(wanted)
    return folder / "bin" / "python"


def installed_versions(row: str, python: Path) -> dict[str, str]:
    """Versions there of the packages that the row asks for by version."""
    said = subprocess.run([python, "-c", _VERSIONS], check=True, capture_output=True, text=True).stdout
    found = {name.lower().replace("_", "-"): version for name, version in json.loads(said).items()}
    pinned = [line.partition("==")[0] for line in _requirements(row).splitlines() if "==" in line]
    return {name: found[name.partition("[")[0].lower()] for name in pinned}


def with_sources() -> dict[str, str]:
    """Environment variables for a Python that is to import this checkout's fewbits."""
    return {**os.environ, "PYTHONPATH": str(_importable())}


@cache
def _importable() -> Path:
    """Folder to import it from: an editable installation keeps the compiled module elsewhere, so links to both."""
    package = SOURCES / "fewbits"
    if NATIVE.parent == package:
        return SOURCES
    linked = Path(_links.name) / "fewbits"
    linked.mkdir()
    for path in (*package.glob("[!_]*"), package / "__init__.py", package / "__main__.py", NATIVE):
        (linked / path.name).symlink_to(path)
    return linked.parent


def _requirements(row: str) -> str:
    return (ROWS / row / "requirements.txt").read_text()
