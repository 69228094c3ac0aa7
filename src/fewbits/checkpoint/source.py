"""Finding out what a source is, and opening it."""

from __future__ import annotations

import re
from pathlib import Path

from fewbits.checkpoint.checkpoint import Checkpoint
from fewbits.checkpoint.converted import read_description
from fewbits.checkpoint.gguf import open_gguf
from fewbits.checkpoint.gguf_constants import MAGIC
from fewbits.checkpoint.hf_directory import INDEX, SINGLE, interpret, read_hf_directory
from fewbits.errors import CheckpointError

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w.-]+)?")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_LOOKED_FOR = (
    f"a directory with {SINGLE}, {INDEX} or one .gguf file; a .safetensors or .gguf file; a hub id OWNER/NAME"
)


def open_checkpoint(source: str | Path) -> Checkpoint:
    """The model at a path, or of a hub id (from the local cache when it is there).

    Raises:
        CheckpointError: nothing there, not a model, damaged, pickled, or packed for another runtime.
        HubError: a hub id that is neither cached nor reachable.
    """
    stored = open_stored(source)
    return interpret(stored) if stored.container == "safetensors" else stored


def open_stored(source: str | Path) -> Checkpoint:
    """As `open_checkpoint`, with all tensors as they lie in the files: scales and packed weights too."""
    path = Path(source).expanduser()
    if path.is_dir():
        return _open_directory(path)
    if path.exists():
        return _open_file(path)
    if (
        isinstance(source, str)
        and _HUB_ID.fullmatch(source)
        and not source.endswith((".gguf", ".safetensors"))
    ):
        from fewbits.checkpoint.hub import download  # only then: importing huggingface_hub takes long

        return _open_directory(download(source))
    raise CheckpointError(
        f"no model at {source}",
        found="no such file or directory" + _nearest(path),
        allowed=_LOOKED_FOR,
        action="Check the path.",
    )


def _open_directory(path: Path) -> Checkpoint:
    if (described := read_description(path)) is not None:
        raise CheckpointError(
            f"{path} was converted for {described.container}, whose library alone reads it",
            allowed=_LOOKED_FOR, action="Start from the model that it was made from, or from another artifact",
        )  # fmt: skip
    names = sorted(p.name for p in path.iterdir() if p.is_file())
    if any(name.endswith(".safetensors") for name in names) or INDEX in names:
        return read_hf_directory(path)
    if "model.onnx" in names:
        from fewbits.checkpoint.onnx_folder import open_onnx_folder  # it imports the formats

        return open_onnx_folder(path)
    gguf = [name for name in names if name.endswith(".gguf")]
    first_shards = [name for name in gguf if re.search(r"-00001-of-\d{5}\.gguf$", name)]
    if len(gguf) == 1 or (len(first_shards) == 1 and all("-of-" in name for name in gguf)):
        return open_gguf(path / (first_shards or gguf)[0])
    if gguf:
        raise CheckpointError(
            f"{path} holds several models",
            found=", ".join(gguf[:8]) + (f" and {len(gguf) - 8} more" if len(gguf) > 8 else ""),
            action="Name one of the files instead of the directory.",
        )
    if pickled := [name for name in names if name.endswith(_PICKLED)]:
        raise _pickled(path, ", ".join(pickled[:4]))
    raise CheckpointError(
        f"no model in {path}",
        found=", ".join(names[:12]) or "no files",
        allowed=_LOOKED_FOR,
        action="Check the path; an unfinished download is continued by running it again.",
    )


def _open_file(path: Path) -> Checkpoint:
    if path.suffix == ".safetensors":
        return read_hf_directory(path.parent, path)
    if path.name == INDEX:
        return read_hf_directory(path.parent)
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError:
        magic = b""
    if path.suffix == ".gguf" or magic == MAGIC:
        return open_gguf(path)
    if path.suffix in _PICKLED:
        raise _pickled(path.parent, path.name)
    raise CheckpointError(
        f"{path} is not a model that fewbits knows",
        found=f"a file that begins with {magic!r}",
        allowed=_LOOKED_FOR,
        action="Check the path.",
    )


def _pickled(directory: Path, names: str) -> CheckpointError:
    return CheckpointError(
        f"the weights in {directory} are pickled, and unpickling a file runs whatever code its author put in",
        found=names,
        allowed="safetensors or GGUF",
        action="Where you trust the author, convert once with transformers: "
        "AutoModelForCausalLM.from_pretrained(DIR, dtype='auto').save_pretrained(NEW_DIR, "
        "safe_serialization=True); then use NEW_DIR.",
    )


def _nearest(path: Path) -> str:
    """The part of the path that exists, for the message."""
    parent = next((p for p in path.parents if p.exists()), None)
    return f" (what exists is {parent})" if parent not in (None, Path(), path.parent) else ""
