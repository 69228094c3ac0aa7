"""Reading a folder for ONNX Runtime that fewbits wrote: weights under Hugging Face's names, in our formats.

The graph's own initializers say where the bytes lie; its metadata say which rows of which weights they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewbits.checkpoint.checkpoint import Checkpoint, LazyTensor
from fewbits.checkpoint.file_tensor import FileTensor
from fewbits.checkpoint.packed import PackedTensor
from fewbits.errors import CheckpointError, MissingExtraError
from fewbits.formats import get_format
from fewbits.formats.compressed_tensors import INPUT_SCALE

GRAPH = "model.onnx"
DATA = f"{GRAPH}.data"
# Keys of the graph's metadata.
PIECES, SHAPES = "fewbits.pieces", "fewbits.shapes"
_WHOLE = "data"


@dataclass(frozen=True)
class StoredPiece:
    """Rows of one part of a tensor, within an initializer.

    Attributes:
        tensor: its name.
        part: the format's name for it.
        row: the first of the tensor's rows.
        nbytes: length.
    """

    tensor: str
    part: str
    row: int
    nbytes: int


def input_scale_name(codes: str) -> str:
    """The initializer with the scale of a map's inputs, of that with its codes."""
    return f"{codes}/{INPUT_SCALE}"


def tensor_regions(
    offsets: Mapping[str, int], pieces: Mapping[str, Sequence[StoredPiece]]
) -> dict[str, dict[str, tuple[int, int]]]:
    """Tensor -> part -> (offset, bytes), from the initializers' offsets and what lies in them.

    Raises:
        ValueError: rows of a tensor don't lie one after another.
    """
    runs: dict[tuple[str, str], list[tuple[int, int, int]]] = {}
    for name, found in pieces.items():
        start = offsets[name]
        for piece in found:
            runs.setdefault((piece.tensor, piece.part), []).append((piece.row, start, piece.nbytes))
            start += piece.nbytes
    regions: dict[str, dict[str, tuple[int, int]]] = {}
    for (tensor, part), run in runs.items():
        run.sort()
        offset, end = run[0][1], run[0][1]
        for _, start, nbytes in run:
            if start != end:
                raise ValueError(f"rows of {tensor} lie apart")
            end = start + nbytes
        regions.setdefault(tensor, {})[part] = (offset, end - offset)
    return regions


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
        MissingExtraError: the package onnx isn't installed.
    """
    return _places(_load(path))


def _input_scales(model: Any) -> dict[str, float]:
    """Tensor -> the scale of its map's inputs, where the graph has one."""
    from onnx import numpy_helper

    props = {entry.key: entry.value for entry in model.metadata_props}
    stored = {entry.name: entry for entry in model.graph.initializer}
    return {
        StoredPiece(*piece).tensor: float(numpy_helper.to_array(scale))
        for name, found in json.loads(props[PIECES]).items()
        if (scale := stored.get(input_scale_name(name))) is not None
        for piece in found
    }


def _places(model: Any) -> dict[str, dict[str, tuple[int, int]]]:
    props = {entry.key: entry.value for entry in model.metadata_props}
    if PIECES not in props:
        raise ValueError(f"no {PIECES} in the graph's metadata")
    offsets, lengths = {}, {}
    for initializer in model.graph.initializer:
        entries = {entry.key: entry.value for entry in initializer.external_data}
        if entries:
            offsets[initializer.name], lengths[initializer.name] = (
                int(entries["offset"]),
                int(entries["length"]),
            )
    pieces = {n: [StoredPiece(*piece) for piece in found] for n, found in json.loads(props[PIECES]).items()}
    for name, found in pieces.items():
        if lengths.get(name) != sum(piece.nbytes for piece in found):
            raise ValueError(f"{name} isn't what the metadata say")
    return tensor_regions(offsets, pieces)


def open_onnx_folder(path: Path) -> Checkpoint:
    """The model in a folder that fewbits wrote.

    Raises:
        CheckpointError: another program wrote it, or it is damaged.
        MissingExtraError: the package onnx isn't installed.
    """
    data = path / DATA
    try:
        model = _load(path / GRAPH)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        places = _places(model)
        shapes = json.loads(metadata[SHAPES])
        config = json.loads((path / "config.json").read_bytes())
        tensors = {name: _tensor(name, fmt, dims, places[name], data) for name, (fmt, dims) in shapes.items()}
        for name, scale in _input_scales(model).items():
            tensor = tensors[name]
            if isinstance(tensor, PackedTensor):
                tensor.inputs = {INPUT_SCALE: scale}
        size = data.stat().st_size
    except MissingExtraError:
        raise
    except Exception as error:  # protobuf's errors are its own
        raise CheckpointError(
            f"{path} is no ONNX model that fewbits wrote, or it is damaged",
            found=f"{type(error).__name__}: {error}", action="Start from the original model",
        ) from error  # fmt: skip
    if size < max((at + n for parts in places.values() for at, n in parts.values()), default=0):
        raise CheckpointError(f"{data} is truncated", found=f"{size} bytes", action="Copy it again")
    metadata = {key: value for key, value in metadata.items() if key not in (PIECES, SHAPES)}
    return Checkpoint(path, "onnx", tensors, (path / GRAPH, data), config=config, metadata=metadata)


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
