"""Writes a folder that onnxruntime-genai generates from, with 4 and 8-bit weights.

    OUTPUT/model.onnx            the graph, with where each weight lies and how it was made
    OUTPUT/model.onnx.data       the weights, nothing else
    OUTPUT/genai_config.json, tokenizer.json, …
    OUTPUT/config.json           the model's own, by which fewbits reads the folder

Tensors carry Hugging Face's names. Those that the graph has joined (q, k, v) lie one after another.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fewbits.algorithms.static_scales import DEFAULT_RULE, INT8_GRID, static_scale
from fewbits.architectures import parameters_of_directory, to_published
from fewbits.calibration.statistics import Statistics
from fewbits.checkpoint.checkpoint import Checkpoint, LazyTensor
from fewbits.checkpoint.dtypes import PLAIN
from fewbits.checkpoint.onnx_folder import DATA, PIECES, read_places
from fewbits.errors import ArchitectureError, VerificationError
from fewbits.export.exporter import Exporter, Layout, OutputFile, OutputTensor, Region
from fewbits.export.hugging_face.directory import one_block
from fewbits.export.hugging_face.naming_rules import block_of, fused, role_of
from fewbits.export.hugging_face.side_files import CONFIG, model_config, side_files
from fewbits.export.onnx.activation_blocks import ACTIVATION_BLOCK
from fewbits.export.onnx.graph import write_graph
from fewbits.export.onnx.template import GRAPH, Template, build_template
from fewbits.formats.activation_grid import TOKEN, ActivationGrid, integer_grid
from fewbits.formats.nbits import NBITS_NAMES
from fewbits.formats.qdq import QDQStaticFormat

STATIC = QDQStaticFormat.name
_PROVENANCE = "fewbits."
# Of the nodes that round a map's inputs, at most, beside names.
_STATIC_NBYTES = 2048
_MADE = (GRAPH, DATA, CONFIG, "genai_config.json")
_SIDE = (".json", ".jinja", ".txt", ".model")


class OnnxExporter(Exporter):
    """ONNX Runtime's folder."""

    name = "onnx"
    folder = True
    formats = (*(n for n in NBITS_NAMES if n.startswith("NBITS8")), "QDQ8", STATIC,
               *(n for n in NBITS_NAMES if n.startswith("NBITS4")))  # fmt: skip
    # Groups of 16 are for rows that no longer group divides.
    planned = tuple(name for name, group in NBITS_NAMES.items() if group > 16)
    default_format = "NBITS4_G32"  # the model builder's group
    head_formats = MappingProxyType({STATIC: "QDQ8"})  # inputs of the head aren't sampled

    def tensors(self, checkpoint: Checkpoint) -> list[OutputTensor]:
        """The parameters of transformers' model that the graph uses.

        Raises:
            ArchitectureError: onnxruntime-genai's model builder doesn't know the model, or weights are missing.
            ExportError: the model builder failed, or isn't the one that is known.
            MissingExtraError: the packages for it aren't installed.
        """
        found: Mapping[str, LazyTensor] = checkpoint.tensors
        if checkpoint.container == "gguf":
            _, found = to_published(checkpoint)
        metadata = self.metadata(checkpoint)
        template = self._template(metadata)
        used = {piece.parameter for weight in template.weights.values() for piece in weight.pieces}
        names = [name for name in template.shapes if name in used]
        found = parameters_of_directory(_directory(found, metadata[CONFIG]), names)
        if missing := [name for name in names if name not in found]:
            raise ArchitectureError(
                "the graph has weights that the source doesn't have", found=", ".join(missing[:4]),
                action="Choose another container",
            )  # fmt: skip
        quantizable = _quantizable(template)
        return [_output(name, found[name], name in quantizable) for name in names]

    def metadata(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Name of each side file -> its bytes, or for config.json its data."""
        config = {k: v for k, v in model_config(checkpoint).items() if k != "quantization_config"}
        return {CONFIG: config, **side_files(checkpoint)}

    def notes(self, checkpoint: Checkpoint, formats: Mapping[str, str]) -> tuple[str, ...]:
        """What activations are rounded to."""
        del checkpoint
        if not any(name in self.formats and name != STATIC for name in formats.values()):
            return ()
        return ("on CPUs, ONNX Runtime rounds the activations of quantized layers to 8 bits",)

    def activation_block(self, format_name: str) -> int:
        """ONNX Runtime rounds activations in the blocks of the weights."""
        return ACTIVATION_BLOCK.get(format_name, 0)

    def activation_grid(self, format_name: str) -> ActivationGrid | None:
        """See `Exporter.activation_grid`."""
        return integer_grid(8, TOKEN) if format_name == STATIC else super().activation_grid(format_name)

    def input_scale(self, format_name: str, statistics: Statistics, rule: str = DEFAULT_RULE) -> float:
        """See `Exporter.input_scale`."""
        if format_name != STATIC:
            return super().input_scale(format_name, statistics, rule)
        return static_scale(statistics, INT8_GRID, rule)

    def tied(self, tensors: Iterable[OutputTensor]) -> list[list[str]]:
        """Projections that the graph joins."""
        groups = fused(t.name for t in tensors if t.quantizable)
        return [group for group in groups if any("q_proj" in name for name in group)]

    def layout(
        self, tensors: list[OutputTensor], formats: Mapping[str, str], metadata: Mapping[str, Any]
    ) -> Layout:
        """Files and exact offsets for these formats (tensor name -> format or dtype).

        Raises:
            ArchitectureError, FormatError, PlanError: see `write_graph`.
        """
        template = self._template(metadata)
        made = {k: str(v) for k, v in metadata.items() if k.startswith(_PROVENANCE)}
        written = write_graph(template, formats, made, {t.name: t.input_scale for t in tensors})
        config = (json.dumps(metadata[CONFIG], indent=2) + "\n").encode()
        side = {**template.files, CONFIG: config, GRAPH: written.graph}
        files = {name: OutputFile(data, len(data)) for name, data in side.items()}
        return Layout({**files, DATA: OutputFile(b"", written.size)}, written.parts)

    def header_nbytes(self, tensors: list[OutputTensor], formats: Mapping[str, str], plan: str) -> int:
        """The texts that name formats; the nodes of zero points are counted where there are none too."""
        static = sum(_STATIC_NBYTES for t in tensors if formats[t.name] == STATIC)
        return len(plan) + sum(len(formats[t.name]) for t in tensors) + static

    def first_block(
        self, tensors: list[OutputTensor], metadata: Mapping[str, Any]
    ) -> tuple[list[OutputTensor], dict[str, Any]]:
        """A model of one transformer block, cut from this one."""
        return one_block(tensors, metadata)

    def parameters(
        self, tensors: Mapping[str, LazyTensor], metadata: Mapping[str, Any], wanted: Iterable[str]
    ) -> Mapping[str, LazyTensor]:
        """The tensors themselves."""
        return parameters_of_directory(_directory(tensors, metadata[CONFIG]), wanted)

    def read_back(self, path: Path) -> Layout:
        """Parse a written folder again.

        Raises:
            VerificationError: it doesn't read back.
        """
        files = {}
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            name = file.relative_to(path).as_posix()
            data = b"" if name == DATA else file.read_bytes()
            files[name] = OutputFile(data, file.stat().st_size)
        try:
            places = read_places(path / GRAPH)
        except ValueError as error:
            raise VerificationError(f"{path / GRAPH} doesn't read back", found=str(error)) from error
        parts = {t: {p: Region(o, n, DATA) for p, (o, n) in found.items()} for t, found in places.items()}
        return Layout(files, parts)

    def recognises(self, stored: Checkpoint) -> bool:
        """By the kind of files."""
        return stored.container == self.name

    def foreign(self, path: Path) -> list[str]:
        """Everything, unless fewbits made the graph."""
        names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if not p.is_dir())
        graph = path / GRAPH
        if not graph.is_file() or PIECES.encode() not in graph.read_bytes():
            return names
        return [name for name in names if name not in _MADE and not name.endswith(_SIDE)]

    def _template(self, metadata: Mapping[str, Any]) -> Template:
        files = {name: data for name, data in metadata.items() if isinstance(data, bytes)}
        return build_template(metadata[CONFIG], files)


def _directory(tensors: Mapping[str, LazyTensor], config: Mapping[str, Any]) -> Checkpoint:
    return Checkpoint(Path(), "safetensors", tensors, (), config=config)


def _quantizable(template: Template) -> set[str]:
    """Matrices of which all uses have a quantized operator."""
    import onnx

    fits: dict[str, bool] = {}
    for node in onnx.load_model_from_string(template.graph).graph.node:
        for name in node.input:
            weight = template.weights.get(name)
            if weight is None:
                continue
            known = node.op_type == ("MatMul" if weight.transposed else "Gather") and len(weight.shape) == 2
            for piece in weight.pieces:
                fits[piece.parameter] = fits.get(piece.parameter, True) and known and not piece.constant
    return {name for name, fit in fits.items() if fit}


def _output(name: str, tensor: LazyTensor, quantizable: bool) -> OutputTensor:
    plain = tensor.dtype if tensor.dtype in PLAIN and len(tensor.shape) == 2 else "F32"
    return OutputTensor(name, tensor, role_of(name, tensor.shape), quantizable, plain, block_of(name))
