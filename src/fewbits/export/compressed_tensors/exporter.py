"""Writes a Hugging Face directory whose linear layers are packed as compressed-tensors has them.

    OUTPUT/config.json                 the source's, with quantization_config and how it was made
    OUTPUT/model.safetensors           or shards with an index
    OUTPUT/tokenizer.json, …           as the source has them

Tensors carry Hugging Face's names. The embedding and the head stay as they are: few runtimes read them packed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fewbits.architectures import parameters_of_directory, to_published
from fewbits.checkpoint.checkpoint import Checkpoint, LazyTensor, StoredTensor
from fewbits.checkpoint.dtypes import STORAGE
from fewbits.errors import ArchitectureError, CheckpointError, VerificationError
from fewbits.export.compressed_tensors.naming_rules import TRANSPOSED, block_of, fused, role_of
from fewbits.export.compressed_tensors.quantization_config import quantization_config
from fewbits.export.compressed_tensors.side_files import (
    CONFIG,
    foreign_files,
    model_config,
    side_files,
)
from fewbits.export.exporter import WHOLE, Exporter, Layout, OutputFile, OutputTensor, Region
from fewbits.export.safetensors_files import Array, place_arrays, read_placed
from fewbits.formats import get_format
from fewbits.formats.compressed_tensors import EVERYWHERE, SCHEMES, SHAPE_PART, rare

_WEIGHT = "weight"
_PROVENANCE = "fewbits."
_PLAN = "fewbits.plan"
_FLOATS = ("F32", "F16", "BF16")


class CompressedTensorsExporter(Exporter):
    """compressed-tensors' container: a directory."""

    name = "compressed-tensors"
    folder = True
    formats = tuple(sorted(SCHEMES, key=lambda name: -get_format(name).bits))
    planned = EVERYWHERE
    default_format = "INT4_G128_SYM"  # what the most runtimes compute the fastest

    def tensors(self, checkpoint: Checkpoint) -> list[OutputTensor]:
        """What the directory will hold, under the names of the source or, from GGUF, of transformers' model.

        Raises:
            ArchitectureError: a GGUF file of an architecture that transformers isn't known to have, or a model
                whose weights lie transposed.
        """
        tensors = checkpoint.tensors
        if (kind := checkpoint.config.get("model_type")) in TRANSPOSED:
            raise ArchitectureError(
                "weights of this kind of model lie transposed, which compressed-tensors has no place for",
                found=f"model_type {kind}", action="Choose another container",
            )  # fmt: skip
        if checkpoint.container == "gguf":
            _, tensors = to_published(checkpoint)
        return [_output(name, tensor) for name, tensor in tensors.items()]

    def metadata(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Name of each side file -> its bytes, or for config.json its data."""
        return {CONFIG: model_config(checkpoint), **side_files(checkpoint)}

    def notes(self, checkpoint: Checkpoint, formats: Mapping[str, str]) -> tuple[str, ...]:
        """Which runtimes don't compute the formats, and which weights stayed as they are."""
        notes = []
        if found := rare(formats.values()):
            notes.append(
                f"{', '.join(found)}: transformers unpacks this, vLLM and SGLang may have no kernel for it; "
                f"sure are {', '.join(EVERYWHERE)}"
            )
        zeros = {n for n, f in formats.items() if f in SCHEMES and SCHEMES[f].packs_zero_points}
        if zeros and len({f for f in formats.values() if f in SCHEMES}) > 1:
            notes.append("transformers can't load several formats of which one has zero points; vLLM can")
        elif any(".experts." in name for name in zeros):
            notes.append(
                "transformers can't load experts with zero points; formats that end in _SYM have none"
            )
        stacked = [n for n, t in checkpoint.tensors.items() if len(t.shape) == 3 and block_of(n) is not None]
        if stacked:
            notes.append(f"{len(stacked)} stacks of experts aren't quantized, such as {stacked[0]}")
        return tuple(notes)

    def tied(self, tensors: Iterable[OutputTensor]) -> list[list[str]]:
        """Projections that runtimes fuse, and all experts of a block."""
        return fused(t.name for t in tensors if t.quantizable)

    def layout(
        self, tensors: list[OutputTensor], formats: Mapping[str, str], metadata: Mapping[str, Any]
    ) -> Layout:
        """Files and exact offsets for these formats (tensor name -> format or dtype).

        Raises:
            FormatError: a format whose block doesn't divide the rows.
        """
        made = {k: v for k, v in metadata.items() if k.startswith(_PROVENANCE)}
        texts = {k: str(v) for k, v in made.items()}
        placed = place_arrays([_arrays(t, formats[t.name]) for t in tensors], texts)
        config = {**metadata.get(CONFIG, {}), **{k: v for k, v in made.items() if k != _PLAN}}
        if (quantized := quantization_config(tensors, formats)) is not None:
            config["quantization_config"] = quantized
        side = {CONFIG: (json.dumps(config, indent=2) + "\n").encode()}
        side |= {name: data for name, data in metadata.items() if isinstance(data, bytes)}
        files = {name: OutputFile(data, len(data)) for name, data in side.items()}
        return Layout({**files, **placed.files}, placed.parts)

    def header_nbytes(self, tensors: list[OutputTensor], formats: Mapping[str, str], plan: str) -> int:
        """Bytes of the headers without what doesn't depend on the formats, and of arrays with the shape."""
        layout = self.layout(tensors, formats, {_PLAN: plan})
        known = (r.nbytes for parts in layout.parts.values() for r in parts.values() if r.content is not None)
        return layout.header_nbytes + sum(known)

    def first_block(
        self, tensors: list[OutputTensor], metadata: Mapping[str, Any]
    ) -> tuple[list[OutputTensor], dict[str, Any]]:
        """A model of one transformer block, cut from this one."""
        config = _one_block(dict(metadata[CONFIG]))
        return [t for t in tensors if t.block in (None, 0)], {**metadata, CONFIG: config}

    def parameters(
        self, tensors: Mapping[str, LazyTensor], metadata: Mapping[str, Any], wanted: Iterable[str]
    ) -> Mapping[str, LazyTensor]:
        """The tensors themselves; experts that the directory holds one by one are stacked by the table."""
        directory = Checkpoint(Path(), "safetensors", tensors, (), config=metadata[CONFIG])
        return parameters_of_directory(directory, wanted)

    def read_back(self, path: Path) -> Layout:
        """Parse a written directory's headers again.

        Raises:
            VerificationError: it doesn't read back.
        """
        files: dict[str, OutputFile] = {}
        parts: dict[str, dict[str, Region]] = {}
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            name = file.relative_to(path).as_posix()
            if file.suffix != ".safetensors":
                data = file.read_bytes()
                files[name] = OutputFile(data, len(data))
                continue
            try:
                files[name], regions = read_placed(path, name)
            except CheckpointError as error:
                raise VerificationError(f"{file} doesn't read back", found=str(error)) from error
            for array, region in regions.items():
                tensor, part = _owner(array, regions)
                parts.setdefault(tensor, {})[part] = region
        return Layout(files, parts)

    def foreign(self, path: Path) -> list[str]:
        """Files that are no part of a model that fewbits made."""
        return foreign_files(path)


def _output(name: str, tensor: LazyTensor) -> OutputTensor:
    role = role_of(name, tensor.shape)
    return OutputTensor(name, tensor, role, role == "linear", _plain_dtype(tensor), block_of(name))


def _plain_dtype(tensor: LazyTensor) -> str:
    """What it is stored in unquantized: its own dtype, or BF16 where the source is quantized."""
    if tensor.dtype in _FLOATS:
        return tensor.dtype
    if tensor.dtype == "F64":
        return "F32"
    counted = isinstance(tensor, StoredTensor) and tensor.dtype in STORAGE
    return tensor.dtype if counted and not tensor.dtype.startswith("F8") else "BF16"


def _arrays(tensor: OutputTensor, name: str) -> list[Array]:
    """The arrays of a tensor in a format or a dtype."""
    if name not in SCHEMES:
        return [Array(tensor.name, name, tensor.shape, tensor.name, WHOLE)]
    prefix = tensor.name.removesuffix(_WEIGHT)
    arrays = [
        Array(prefix + part, layout.dtype, layout.shape, tensor.name, part, repeated=layout.rows is None)
        for part, layout in get_format(name).parts(tensor.shape).items()
    ]
    if SCHEMES[name].shape_part:
        shape = np.array(tensor.shape, "<i8").tobytes()
        arrays.append(Array(prefix + SHAPE_PART, "I64", (2,), tensor.name, SHAPE_PART, content=shape))
    return arrays


def _owner(array: str, arrays: Iterable[str]) -> tuple[str, str]:
    """The tensor that an array of a file belongs to, and which part of it it is."""
    module, _, part = array.rpartition(".")
    if part.startswith(_WEIGHT) and f"{module}.weight_scale" in arrays:
        return f"{module}.{_WEIGHT}", part
    return array, WHOLE


def _one_block(config: dict[str, Any]) -> dict[str, Any]:
    """The config of a model of one block; settings with a value per block keep the first."""
    blocks = config.get("num_hidden_layers")
    for key, value in config.items():
        if isinstance(value, dict):
            config[key] = _one_block(dict(value))
        elif isinstance(value, list) and isinstance(blocks, int) and len(value) == blocks:
            config[key] = value[:1]
    if isinstance(blocks, int):
        config["num_hidden_layers"] = 1
    return config
