"""What a folder says of itself that only its runtime's library can write and read.

fewbits.json

    {"fewbits": 1, "container": "openvino",
     "metadata": {"fewbits.version": …, "fewbits.plan": …},        how it was made, as in other artifacts
     "config": {…},                                                the model's config.json
     "tensors": {name: {"shape": […], "format": …, "nbytes": …}},  as they were quantized
     "files": {name: bytes}}                                       all others in the folder

fewbits.safetensors: vectors, as norms, that the library's files hold too, but not by the model's names. They may have
been rescaled with the weights, and tell what the runtime is to compute.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from fewbits.checkpoint.checkpoint import LazyTensor
from fewbits.checkpoint.hf_directory import read_json
from fewbits.checkpoint.safetensors import read_safetensors_header
from fewbits.errors import CheckpointError

DESCRIPTION = "fewbits.json"
VECTORS = "fewbits.safetensors"
_VERSION = 1


@dataclass(frozen=True)
class ConvertedTensor:
    """A tensor as it was quantized: its shape, its format or dtype, and the bytes of codes and scales."""

    shape: tuple[int, ...]
    format: str
    nbytes: int


@dataclass(frozen=True)
class Description:
    """What the file says; see the module."""

    container: str
    metadata: Mapping[str, Any]
    config: Mapping[str, Any]
    tensors: Mapping[str, ConvertedTensor]
    files: Mapping[str, int]

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps({"fewbits": _VERSION, **asdict(self)}, indent=1) + "\n"

    @property
    def weights(self) -> int:
        """Numbers in all tensors."""
        return sum(prod(t.shape) for t in self.tensors.values())


def read_description(folder: Path) -> Description | None:
    """What a folder says of itself, or None if it isn't one that a converter made.

    Raises:
        CheckpointError: its fewbits.json can't be read, or is of another version.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        return None
    data = read_json(path)
    if not isinstance(data, dict) or data.get("fewbits") != _VERSION:
        raise CheckpointError(
            f"{path} can't be read", found=f"version {data.get('fewbits')}" if isinstance(data, dict) else None,
            allowed=f"version {_VERSION}", action="Make the folder again with this version of fewbits",
        )  # fmt: skip
    try:
        tensors = {
            str(name): ConvertedTensor(tuple(map(int, t["shape"])), str(t["format"]), int(t["nbytes"]))
            for name, t in data["tensors"].items()
        }
        files = {str(name): int(size) for name, size in data["files"].items()}
        return Description(
            str(data["container"]), dict(data["metadata"]), dict(data["config"]), tensors, files
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path} can't be read", found=f"no usable {error}", action="Make the folder again"
        ) from error


def read_vectors(folder: Path) -> Mapping[str, LazyTensor]:
    """The vectors that a converted folder keeps beside its library's files, by the model's names.

    Raises:
        CheckpointError: the file can't be read.
    """
    path = folder / VECTORS
    return read_safetensors_header(path).tensors if path.is_file() else {}


def foreign_files(folder: Path) -> list[str]:
    """Files of a folder that no converter of fewbits put there; all of them if it made none of it."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())
    try:
        described = read_description(folder)
    except CheckpointError:
        return names
    if described is None:
        return names
    return [name for name in names if name != DESCRIPTION and name not in described.files]
