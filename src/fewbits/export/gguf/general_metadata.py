"""The `general.*` keys: what the model is called, by whom and under which licence."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from fewbits.export.exporter import OutputTensor

QUANTIZATION_VERSION = 2  # of ggml's block formats, since May 2023
# llama.cpp's numbers for "mostly of this type"; mixtures of k-quants are numbered as their medium kind.
_FILE_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K": 12,
    "Q4_K": 15, "Q5_K": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30, "BF16": 32, "MXFP4": 38,
}  # fmt: skip
_GUESSED = 1024  # llama.cpp's flag for a number that wasn't stated by whoever made the file
_HUB_CACHE = re.compile(r"models--[^/]+--([^/]+)")
_TEXT_KEYS = ("license", "license_name", "license_link")
_LIST_KEYS = ("tags", "language")


def general_metadata(architecture: str, directory: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Keys that don't depend on the model's maths.

    Args:
        architecture: llama.cpp's name for it; must come first in the file by convention.
        directory: of the Hugging Face model; the front matter of its README.md is read if there is one.
        config: its config.json.
    """
    keys: dict[str, Any] = {
        "general.architecture": architecture,
        "general.type": "model",
        "general.name": model_name(directory, config),
    }
    card = front_matter(directory / "README.md")
    names = {"license_name": "license.name", "license_link": "license.link", "language": "languages"}
    for key in (*_TEXT_KEYS, *_LIST_KEYS):
        value = card.get(key)
        if value and key in _LIST_KEYS:
            value = [value] if isinstance(value, str) else value
        if value and isinstance(value, list if key in _LIST_KEYS else str):
            keys[f"general.{names.get(key, key)}"] = value
    return keys | {"general.quantization_version": QUANTIZATION_VERSION}


def file_type(tensors: Sequence[OutputTensor], formats: Mapping[str, str]) -> int:
    """`general.file_type`: llama.cpp's number for the type that most weights have; for display only."""
    weights: dict[str, int] = {}
    for tensor in tensors:
        name = formats.get(tensor.name, tensor.plain)
        weights[name] = weights.get(name, 0) + prod(tensor.shape)
    most = max(weights, key=lambda name: weights[name], default="F32")
    return _FILE_TYPES.get(most, _GUESSED)


def model_name(directory: Path, config: Mapping[str, Any]) -> str:
    """The config's `_name_or_path`, or the directory's name, without owner and cache folders."""
    given = str(config.get("_name_or_path") or "").rstrip("/")
    path = Path(given) if given and given != "." else directory.resolve()
    cached = _HUB_CACHE.search(path.as_posix())
    return cached[1] if cached else path.name


def front_matter(readme: Path) -> dict[str, str | list[str]]:
    """Top-level strings and lists of strings between the first two ``---`` lines; {} when there are none.

    Understands the part of YAML that model cards use for them: ``key: text``, ``key: [a, b]`` and ``- item``.
    """
    try:
        lines = readme.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    if not lines or lines[0].strip() != "---" or "---" not in [line.strip() for line in lines[1:]]:
        return {}
    found: dict[str, str | list[str]] = {}
    key = ""
    for line in lines[1 : next(i for i, text in enumerate(lines) if i and text.strip() == "---")]:
        item = re.fullmatch(r"\s*-\s+(.+)", line)
        pair = re.fullmatch(r"([\w-]+):\s*(.*)", line)
        if item and key and isinstance(found.get(key, []), list):
            items = found.setdefault(key, [])
            assert isinstance(items, list)
            items.append(_unquoted(item[1]))
        elif pair:
            key, value = pair[1], pair[2].strip()
            if value.startswith("[") and value.endswith("]"):
                found[key] = [_unquoted(part) for part in value[1:-1].split(",") if part.strip()]
            elif value:
                found[key] = _unquoted(value)
    return found


def _unquoted(text: str) -> str:
    return text.strip().strip("'\"")
