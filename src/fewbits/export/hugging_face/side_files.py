"""The small files of a Hugging Face directory: config, tokenizer, chat template, generation settings."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from fewbits.checkpoint.checkpoint import Checkpoint
from fewbits.checkpoint.hf_directory import COMPANIONS
from fewbits.errors import CheckpointError
from fewbits.export.hugging_face.from_gguf import config_from_gguf, tokenizer_files

CONFIG = "config.json"
# Written beside the weights if the source has them.
_COPIED = (*COMPANIONS, "*processor_config.json", "LICENSE*")
_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json", "hf_quant_config.json")
_MADE_BY = "fewbits.version"


def model_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """config.json's data, without what fewbits adds.

    Raises:
        CheckpointError: the source has none.
        ArchitectureError: a GGUF file of an architecture that transformers isn't known to have.
        MissingExtraError: a GGUF source without transformers installed.
    """
    if checkpoint.container == "gguf":
        return config_from_gguf(checkpoint)
    if not checkpoint.config:
        raise CheckpointError(
            f"{checkpoint.path} has no {CONFIG}, which a Hugging Face directory needs",
            action="Give the directory that the model was published in",
        )
    return {k: v for k, v in checkpoint.config.items() if not k.startswith("fewbits.")}


def side_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Files to be written beside the weights, by name.

    Raises:
        ArchitectureError, CheckpointError: a GGUF file whose tokenizer can't be told in other words.
    """
    if checkpoint.container == "gguf":
        return tokenizer_files(checkpoint)
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    found = sorted({p for pattern in _COPIED for p in folder.glob(pattern) if p.is_file()})
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}


def write_side_files(checkpoint: Checkpoint, folder: Path) -> None:
    """Write config.json, as the model's own, and the files of `side_files` into a folder.

    Raises:
        see `model_config` and `side_files`.
    """
    config = (json.dumps(model_config(checkpoint), indent=2) + "\n").encode()
    for name, data in {**side_files(checkpoint), CONFIG: config}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def foreign_files(folder: Path) -> list[str]:
    """Files of a folder that are no part of a model that fewbits made; all of them if it made none there."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        return names
    if not isinstance(config, dict) or _MADE_BY not in config:
        return names
    ours = (CONFIG, *_WEIGHTS, *_COPIED)
    return [name for name in names if not any(fnmatch(name, pattern) for pattern in ours)]
