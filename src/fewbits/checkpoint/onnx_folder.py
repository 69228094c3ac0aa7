"""Reading a folder for ONNX Runtime that fewbits wrote: weights under Hugging Face's names, in our formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fewbits.checkpoint.checkpoint import Checkpoint, LazyTensor
from fewbits.checkpoint.file_tensor import FileTensor
from fewbits.checkpoint.packed import PackedTensor
from fewbits.errors import CheckpointError, MissingExtraError
from fewbits.formats import get_format

GRAPH = "model.onnx"
_PLACES = "fewbits.places"
_WHOLE = "data"


def _load(path: Path) -> Any:
    try:
        import onnx
    except ImportError:
        raise MissingExtraError("onnx", "onnx", "Reading a folder for ONNX Runtime") from None
    return onnx.load_model(str(path), load_external_data=False)


def read_places(path: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Tensor -> part -> (offset, bytes) in the data file, as the graph's own initializers say.

    Raises:
        ValueError: fewbits didn't write it, or it contradicts itself.
    """
    return _places(_load(path))


def _places(model: Any) -> dict[str, dict[str, tuple[int, int]]]:
    props = {entry.key: entry.value for entry in model.metadata_props}
    external = {}
    for initializer in model.graph.initializer:
        entries = {entry.key: entry.value for entry in initializer.external_data}
        if entries:
            external[initializer.name] = (int(entries["offset"]), int(entries["length"]))
    if _PLACES not in props:
        raise ValueError(f"no {_PLACES} in the graph's metadata")
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for tensor, parts in json.loads(props[_PLACES]).items():
        for part, (name, offset, nbytes) in parts.items():
            start, length = external[name]
            if offset + nbytes > length:
                raise ValueError(f"{tensor} lies beyond {name}")
            found.setdefault(tensor, {})[part] = (start + offset, nbytes)
    return found


def open_onnx_folder(path: Path) -> Checkpoint:
    """The model in a folder that fewbits wrote.

    Raises:
        CheckpointError: another program wrote it, or it is damaged.
        MissingExtraError: the package onnx isn't installed.
    """
    model = _load(path / GRAPH)
    data = path / f"{GRAPH}.data"
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    try:
        places = _places(model)
        choices = json.loads(metadata["fewbits.plan"])
        config = json.loads((path / "config.json").read_bytes())
        shapes = json.loads(metadata["fewbits.shapes"])
    except (ValueError, KeyError, OSError) as error:
        raise CheckpointError(
            f"{path} is an ONNX model that fewbits didn't write", found=str(error),
            action="Start from the original model",
        ) from error  # fmt: skip
    del choices
    tensors = {n: _tensor(n, *shapes[n], parts, data) for n, parts in places.items()}
    ordered = {name: tensors[name] for name in shapes}
    return Checkpoint(path, "onnx", ordered, (path / GRAPH, data), config=config, metadata=metadata)


def _tensor(
    name: str, format_name: str, dims: list[int], parts: dict[str, tuple[int, int]], data: Path
) -> LazyTensor:
    shape = tuple(dims)
    if _WHOLE in parts:
        return FileTensor(name, shape, format_name, data, *parts[_WHOLE])
    layouts = get_format(format_name).parts(shape)
    stored = {
        p: FileTensor(f"{name}.{p}", layouts[p].shape, layouts[p].dtype, data, *parts[p]) for p in layouts
    }
    return PackedTensor(name, shape, format_name, stored)
