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
from typing import Any

from fewbits.architectures import parameters_of_directory, to_published
from fewbits.checkpoint.checkpoint import Checkpoint, LazyTensor
from fewbits.checkpoint.dtypes import PLAIN
from fewbits.errors import ArchitectureError, VerificationError
from fewbits.export.exporter import Exporter, Layout, OutputFile, OutputTensor, Region
from fewbits.export.hugging_face.naming_rules import block_of, role_of
from fewbits.export.hugging_face.side_files import CONFIG, model_config, side_files
from fewbits.export.onnx.graph import DATA, PLACES, write_graph
from fewbits.export.onnx.template import GRAPH, Template, build_template
from fewbits.formats.nbits import GROUPS, WIDTHS, nbits_name

_PROVENANCE = "fewbits."
_GENAI = "genai_config.json"
# What a choice of formats may change in the graph: nodes and initializers of a weight with zero points.
_ZERO_POINTS_BYTES = 100


class OnnxExporter(Exporter):
    """ONNX Runtime's folder."""

    name = "onnx"
    folder = True
    formats = tuple(
        nbits_name(width, group, symmetric=symmetric)
        for width in WIDTHS
        for group in GROUPS
        for symmetric in (False, True)
    )
    default_format = "NBITS4_G32"

    def tensors(self, checkpoint: Checkpoint) -> list[OutputTensor]:
        """The parameters of transformers' model.

        Raises:
            ArchitectureError: onnxruntime-genai's model builder doesn't know the model, or weights are missing.
            MissingExtraError: the packages for it aren't installed.
        """
        found: Mapping[str, LazyTensor] = checkpoint.tensors
        if checkpoint.container == "gguf":
            _, found = to_published(checkpoint)
        template = self._template(self.metadata(checkpoint))
        if missing := [name for name in template.shapes if name not in found]:
            raise ArchitectureError(
                "the graph has weights that the source doesn't have", found=", ".join(missing[:4])
            )
        quantizable = _quantizable(template)
        return [_output(name, found[name], name in quantizable) for name in template.shapes]

    def metadata(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Name of each side file -> its bytes, or for config.json its data."""
        return {CONFIG: model_config(checkpoint), **side_files(checkpoint)}

    def activation_block(self, format_name: str) -> int:
        """ONNX Runtime rounds activations in the blocks of the weights."""
        found = [
            g
            for g in GROUPS
            for w in WIDTHS
            for s in (0, 1)
            if nbits_name(w, g, symmetric=bool(s)) == format_name
        ]
        return found[0] if found else 0

    def tied(self, tensors: Iterable[OutputTensor]) -> list[list[str]]:
        """Projections that the graph joins."""
        from fewbits.export.hugging_face.naming_rules import fused

        groups = fused(t.name for t in tensors if t.quantizable)
        return [group for group in groups if any("q_proj" in name for name in group)]

    def layout(
        self, tensors: list[OutputTensor], formats: Mapping[str, str], metadata: Mapping[str, Any]
    ) -> Layout:
        """Files and exact offsets for these formats (tensor name -> format or dtype)."""
        del tensors
        template = self._template(metadata)
        made = {k: str(v) for k, v in metadata.items() if k.startswith(_PROVENANCE)}
        written = write_graph(template, formats, made)
        config = (json.dumps(metadata[CONFIG], indent=2) + "\n").encode()
        side = {**template.files, CONFIG: config, GRAPH: written.graph}
        files = {name: OutputFile(data, len(data)) for name, data in side.items()}
        return Layout({**files, DATA: OutputFile(b"", written.size)}, written.parts)

    def header_nbytes(self, tensors: list[OutputTensor], formats: Mapping[str, str], plan: str) -> int:
        """The plan's text; weights without zero points have fewer nodes, counted low."""
        symmetric = sum(name.endswith("_SYM") for name in formats.values())
        return len(plan) + _ZERO_POINTS_BYTES * (len(tensors) - symmetric)

    def first_block(
        self, tensors: list[OutputTensor], metadata: Mapping[str, Any]
    ) -> tuple[list[OutputTensor], dict[str, Any]]:
        """A model of one transformer block, cut from this one."""
        from fewbits.export.hugging_face.directory import _one_block

        config = _one_block(dict(metadata[CONFIG]))
        return [t for t in tensors if t.block in (None, 0)], {**metadata, CONFIG: config}

    def parameters(
        self, tensors: Mapping[str, LazyTensor], metadata: Mapping[str, Any], wanted: Iterable[str]
    ) -> Mapping[str, LazyTensor]:
        """The tensors themselves."""
        directory = Checkpoint(Path(), "safetensors", tensors, (), config=metadata[CONFIG])
        return parameters_of_directory(directory, wanted)

    def read_back(self, path: Path) -> Layout:
        """Parse a written folder again.

        Raises:
            VerificationError: it doesn't read back.
        """
        from fewbits.checkpoint.onnx_folder import read_places

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

    def foreign(self, path: Path) -> list[str]:
        """Everything, unless fewbits made the graph."""
        names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
        graph = path / GRAPH
        if not graph.is_file() or PLACES.encode() not in graph.read_bytes():
            return names
        ours = {GRAPH, DATA, CONFIG, _GENAI}
        return [n for n in names if n not in ours and not n.endswith((".json", ".jinja", ".txt", ".model"))]

    def _template(self, metadata: Mapping[str, Any]) -> Template:
        files = {name: data for name, data in metadata.items() if isinstance(data, bytes)}
        return build_template(metadata[CONFIG], files)


def _quantizable(template: Template) -> set[str]:
    """Matrices of which all uses have a quantized operator."""
    import onnx

    graph = onnx.load_model_from_string(template.graph).graph
    fits: dict[str, bool] = {}
    for node in graph.node:
        for name in node.input:
            weight = template.weights.get(name)
            if weight is None:
                continue
            known = node.op_type == ("MatMul" if weight.transposed else "Gather") and len(weight.shape) == 2
            shifted = any(constant for _, constant in weight.pieces)
            for piece, _ in weight.pieces:
                fits[piece] = fits.get(piece, True) and known and not shifted
    return {name for name, fit in fits.items() if fit}


def _output(name: str, tensor: LazyTensor, quantizable: bool) -> OutputTensor:
    plain = tensor.dtype if tensor.dtype in PLAIN and len(tensor.shape) == 2 else "F32"
    return OutputTensor(name, tensor, role_of(name, tensor.shape), quantizable, plain, block_of(name))
