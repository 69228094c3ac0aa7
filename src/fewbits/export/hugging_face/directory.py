"""What all containers share that are a Hugging Face directory of safetensors files.

    OUTPUT/config.json                 the source's, with how it is quantized and how it was made
    OUTPUT/model.safetensors           or shards with an index
    OUTPUT/tokenizer.json, …           as the source has them

Tensors carry Hugging Face's names. A weight `X.weight` in a format becomes the arrays that the format packs, as `X.`
and the name of the part. A container says which formats it holds, what its config says of them, and how its arrays are
recognised again.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fewbits.architectures import parameters_of_directory, to_published
from fewbits.checkpoint.checkpoint import Checkpoint, LazyTensor, StoredTensor
from fewbits.checkpoint.dtypes import PLAIN, STORAGE
from fewbits.checkpoint.hf_directory import quantization_of, read_hf_directory
from fewbits.checkpoint.kv_cache import KEY_SCALE, VALUE_SCALE
from fewbits.checkpoint.packed import WEIGHT, owner_of, quantized_modules
from fewbits.errors import ArchitectureError, CheckpointError, PlanError, VerificationError
from fewbits.export.exporter import WHOLE, Exporter, Layout, OutputFile, OutputTensor, Region
from fewbits.export.hugging_face.naming_rules import (
    TRANSPOSED,
    block_of,
    computed_together,
    fused,
    role_of,
)
from fewbits.export.hugging_face.safetensors_files import Array, place_arrays, read_placed
from fewbits.export.hugging_face.side_files import CONFIG, foreign_files, model_config, side_files
from fewbits.formats import get_format

_PROVENANCE = "fewbits."
_PLAN = "fewbits.plan"


class HuggingFaceDirectory(Exporter):
    """A container of safetensors files.

    Attributes:
        markers: parts that only quantized modules have, by which `read_back` knows them.
        parts: all parts of quantized modules; longer names that end alike come first.
        roles: of the tensors that are quantized.
        row_multiple: tensors whose number of rows isn't a multiple of it stay in floating point.
        column_multiple: likewise for columns.
        framework: what the files' metadata say that they are for.
        one_format: whether the config has one format for all quantized modules of a model.
        method: config.json's ``quant_method``; "" where it has none.
        experts_note: what the user should know where experts are quantized; "" for nothing.
    """

    folder = True
    markers: tuple[str, ...]
    parts: tuple[str, ...]
    roles: tuple[str, ...] = ("linear",)
    row_multiple: int = 1
    column_multiple: int = 1
    framework: str = "pt"
    one_format: bool = False
    experts_note: str = ""

    @property
    def method(self) -> str:
        """As the container is called, in most."""
        return self.name

    @abstractmethod
    def description(self, tensors: Sequence[OutputTensor], formats: Mapping[str, str]) -> dict[str, Any]:
        """What config.json says of the formats (tensor name -> format or dtype); {} if nothing is quantized."""

    def constants(self, tensor: OutputTensor, name: str) -> list[Array]:
        """Arrays beside those of the format, which don't depend on the weights."""
        del tensor, name
        return []

    def more_files(self, config: Mapping[str, Any]) -> dict[str, bytes]:
        """Files that the container has besides, made from config.json's data."""
        del config
        return {}

    def stack(self, array: str) -> tuple[str, int] | None:
        """The array of the file that an expert's array is a slice of, and which one; None where it lies alone."""
        del array
        return None

    def arrays(self, tensors: Mapping[str, LazyTensor]) -> Mapping[str, LazyTensor]:
        """The files' arrays with stacks taken apart."""
        return tensors

    def tensors(self, checkpoint: Checkpoint) -> list[OutputTensor]:
        """What the directory will hold, under the names of the source or, from GGUF, of transformers' model.

        Raises:
            ArchitectureError: a GGUF file of an architecture that transformers isn't known to have, or a model
                whose weights lie transposed.
        """
        tensors = checkpoint.tensors
        if (kind := checkpoint.config.get("model_type")) in TRANSPOSED:
            raise ArchitectureError(
                f"weights of this kind of model lie transposed, which {self.name} has no place for",
                found=f"model_type {kind}", action="Choose another container",
            )  # fmt: skip
        if checkpoint.container == "gguf":
            _, tensors = to_published(checkpoint)
        return self._with_fused([self._output(name, tensor) for name, tensor in tensors.items()])

    def _with_fused(self, tensors: list[OutputTensor]) -> list[OutputTensor]:
        """The tensors with the names of those that they are fused with, of which all are quantized or none."""
        known = {t.name: t for t in tensors}
        for group in self.fused(t.name for t in tensors if t.role in self.roles):
            able = all(known[name].quantizable for name in group)
            for name in group:
                known[name] = replace(known[name], quantizable=able, fused=tuple(group))
        return list(known.values())

    def _output(self, name: str, tensor: LazyTensor) -> OutputTensor:
        role = role_of(name, tensor.shape)
        rows, columns = tensor.matrix
        fits = rows % self.row_multiple == 0 and columns % self.column_multiple == 0
        return OutputTensor(
            name, tensor, role, role in self.roles and fits, _plain_dtype(tensor), block_of(name)
        )

    def metadata(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Name of each side file -> its bytes, or for config.json its data."""
        return {CONFIG: model_config(checkpoint), **side_files(checkpoint)}

    def notes(self, checkpoint: Checkpoint, formats: Mapping[str, str]) -> tuple[str, ...]:
        """Which weights stayed as they are for their shape, and what runtimes make of experts."""
        notes = []
        if self.experts_note and any(
            ".experts." in name and formats[name] in self.formats for name in formats
        ):
            notes.append(self.experts_note)
        stacked = [n for n, t in checkpoint.tensors.items() if len(t.shape) == 3 and block_of(n) is not None]
        if stacked:
            notes.append(f"{len(stacked)} stacks of experts aren't quantized, such as {stacked[0]}")
        if self.row_multiple > 1 or self.column_multiple > 1:
            left = [t.name for t in self.tensors(checkpoint) if t.role in self.roles and not t.quantizable]
            if left:
                notes.append(
                    f"{len(left)} matrices aren't quantized, such as {left[0]}: {self.name} holds those of a "
                    f"multiple of {self.row_multiple} rows and {self.column_multiple} columns, those that "
                    f"runtimes fuse all or none"
                )
        return tuple(notes)

    def fused(self, names: Iterable[str]) -> list[list[str]]:
        """Groups of tensors that runtimes make one matrix of."""
        return fused(names)

    def tied(self, tensors: Iterable[OutputTensor]) -> list[list[str]]:
        """Projections that runtimes fuse, and all experts of a block; everything where there is one format."""
        names = [t.name for t in tensors if t.quantizable]
        if self.one_format:
            return [names] if len(names) > 1 else []
        return computed_together(names)

    def formats_used(self, tensors: Iterable[OutputTensor], formats: Mapping[str, str]) -> dict[str, str]:
        """Of the quantized tensors, name -> format.

        Raises:
            PlanError: several formats where the container has one for all.
        """
        found = {t.name: formats[t.name] for t in tensors if formats[t.name] in self.formats}
        if self.one_format and len(set(found.values())) > 1:
            names = ", ".join(sorted(set(found.values())))
            raise PlanError(f"{self.name} holds one format in a model", found=names)
        return found

    def linear_left(self, tensors: Iterable[OutputTensor], formats: Mapping[str, str]) -> list[str]:
        """The linear modules that aren't quantized."""
        return [module_of(t) for t in tensors if t.role == "linear" and formats[t.name] not in self.formats]

    def layout(
        self, tensors: list[OutputTensor], formats: Mapping[str, str], metadata: Mapping[str, Any]
    ) -> Layout:
        """Files and exact offsets for these formats (tensor name -> format or dtype).

        Raises:
            FormatError: a format whose block doesn't divide the rows.
            PlanError: formats that the container can't hold together.
        """
        made = {k: v for k, v in metadata.items() if k.startswith(_PROVENANCE)}
        texts = {k: str(v) for k, v in made.items()}
        arrays = [[self._stacked(a) for a in self._arrays(t, formats[t.name])] for t in tensors]
        placed = place_arrays(arrays, texts, self.framework)
        config = {**metadata.get(CONFIG, {}), **{k: v for k, v in made.items() if k != _PLAN}}
        config |= self.description(tensors, formats)
        side = {CONFIG: (json.dumps(config, indent=2) + "\n").encode(), **self.more_files(config)}
        side |= {name: data for name, data in metadata.items() if isinstance(data, bytes)}
        files = {name: OutputFile(data, len(data)) for name, data in side.items()}
        return Layout({**files, **placed.files}, placed.parts)

    def _arrays(self, tensor: OutputTensor, name: str) -> list[Array]:
        """The arrays of a tensor in a format or a dtype."""
        if name not in self.formats:
            return [Array(tensor.name, name, tensor.shape, tensor.name, WHOLE)]
        prefix = tensor.name.removesuffix(WEIGHT)
        arrays = [
            Array(
                prefix + part, layout.dtype, layout.shape, tensor.name, part,
                repeated=layout.rows is None, transposed=layout.axis == 1,
            )
            for part, layout in get_format(name).parts(tensor.shape).items()
        ]  # fmt: skip
        return arrays + self.constants(tensor, name)

    def _stacked(self, array: Array) -> Array:
        found = self.stack(array.name)
        return array if found is None else replace(array, stack=found[0], slice=found[1])

    def header_nbytes(self, tensors: list[OutputTensor], formats: Mapping[str, str], plan: str) -> int:
        """Bytes of the headers without what doesn't depend on the formats, and of arrays that are known already."""
        layout = self.layout(tensors, formats, {_PLAN: plan})
        known = (r.nbytes for parts in layout.parts.values() for r in parts.values() if r.content is not None)
        return layout.header_nbytes + sum(known)

    def first_block(
        self, tensors: list[OutputTensor], metadata: Mapping[str, Any]
    ) -> tuple[list[OutputTensor], dict[str, Any]]:
        """A model of one transformer block, cut from this one."""
        return one_block(tensors, metadata)

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
        arrays: dict[str, Region] = {}
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            name = file.relative_to(path).as_posix()
            if file.suffix != ".safetensors":
                data = file.read_bytes()
                files[name] = OutputFile(data, len(data))
                continue
            try:
                files[name], regions = read_placed(path, name, self.arrays)
            except CheckpointError as error:
                raise VerificationError(f"{file} doesn't read back", found=str(error)) from error
            arrays |= regions
        modules = set(quantized_modules(arrays, self.markers))
        parts: dict[str, dict[str, Region]] = {}
        for array, region in arrays.items():
            owner = owner_of(array, modules, self.parts)
            tensor, part = (array, WHOLE) if owner is None else (f"{owner[0]}.{WEIGHT}", owner[1])
            parts.setdefault(tensor, {})[part] = region
        return Layout(files, parts)

    def recognises(self, stored: Checkpoint) -> bool:
        """By the method that config.json says weights are quantized by."""
        described = quantization_of(stored.config)
        named = described.get("quant_method", "")
        return stored.container == "safetensors" and bool(described) and named == self.method

    def written(self, path: Path) -> Mapping[str, LazyTensor]:
        """See `Exporter.written`; scales of the key-value cache, which are no weights, included."""
        stored = read_hf_directory(path).tensors
        scales = {n: t for n, t in stored.items() if n.endswith((KEY_SCALE, VALUE_SCALE))}
        return {**super().written(path), **scales}

    def foreign(self, path: Path) -> list[str]:
        """Files that are no part of a model that fewbits made."""
        return foreign_files(path)


def module_of(tensor: OutputTensor) -> str:
    """Name of the module whose weight a tensor is."""
    return tensor.name.removesuffix(f".{WEIGHT}")


def usual(descriptions: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The commonest of descriptions of modules, of which there is at least one."""
    return dict(Counter(tuple(d.items()) for d in descriptions).most_common(1)[0][0])


def _plain_dtype(tensor: LazyTensor) -> str:
    """What it is stored in unquantized: its own dtype, or BF16 where the source is quantized."""
    if tensor.dtype in PLAIN:
        return tensor.dtype
    if tensor.dtype == "F64":
        return "F32"
    counted = isinstance(tensor, StoredTensor) and tensor.dtype in STORAGE
    return tensor.dtype if counted and not tensor.dtype.startswith("F8") else "BF16"


def one_block(
    tensors: Iterable[OutputTensor], metadata: Mapping[str, Any]
) -> tuple[list[OutputTensor], dict[str, Any]]:
    """The tensors and the metadata of a model of one block, cut from that of these."""
    config = _one_block(dict(metadata[CONFIG]))
    return [t for t in tensors if t.block in (None, 0)], {**metadata, CONFIG: config}


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
