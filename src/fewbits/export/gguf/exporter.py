"""Writes GGUF: from Hugging Face checkpoints of known architectures, and from any GGUF file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fewbits.architectures import architecture_of, gguf_settings, gguf_tensors, to_hugging_face
from fewbits.checkpoint.checkpoint import Checkpoint, LazyTensor
from fewbits.checkpoint.gguf_constants import DEFAULT_ALIGNMENT, ValueType
from fewbits.export.exporter import ITSELF, WHOLE, Exporter, Layout, OutputFile, OutputTensor, Region
from fewbits.export.gguf.activation_blocks import ACTIVATION_BLOCK
from fewbits.export.gguf.container import (
    Typed,
    encode_header,
    place_tensors,
    plain,
    read_layout,
)
from fewbits.export.gguf.first_block import first_block
from fewbits.export.gguf.general_metadata import QUANTIZATION_VERSION, file_type, general_metadata
from fewbits.export.gguf.naming_rules import allows_quantization, block_of, role_of
from fewbits.export.gguf.tokenizer import tokenizer_metadata

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
# About the source's own quantization, not about the model.
_DROPPED_KEYS = (
    "general.file_type",
    "general.quantization_version",
    "general.quantized_by",
    "general.alignment",
)
_DROPPED_PREFIXES = ("split.", "quantize.", "fewbits.")


class GgufExporter(Exporter):
    """llama.cpp's container."""

    name = "gguf"
    alignment = DEFAULT_ALIGNMENT
    default_format = "Q4_K"
    formats = (
        "Q8_0",
        "Q6_K",
        "Q5_1",
        "Q5_K",
        "Q5_0",
        "Q4_1",
        "Q4_K",
        "Q4_0",
        "IQ4_NL",
        "IQ4_XS",
        "MXFP4",
        "Q3_K",
        "Q2_K",
    )

    def tensors(self, checkpoint: Checkpoint) -> list[OutputTensor]:
        """What the file will hold, in file order.

        From a Hugging Face directory by the table of architectures, from a GGUF file tensor for tensor.

        Raises:
            ArchitectureError: no entry for this architecture, or tensors missing or surplus.
        """
        if checkpoint.container == "gguf":
            return [_output(name, tensor, tensor.dtype) for name, tensor in checkpoint.tensors.items()]
        tensors = gguf_tensors(checkpoint)
        return [_output(name, tensor, _plain_type(name, tensor)) for name, tensor in tensors.items()]

    def metadata(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """What the file will say about the model, tokenizer and chat template included.

        From a GGUF file: its metadata with their types, but for what concerns its own quantization.
        """
        if checkpoint.container == "gguf":
            return _carried_over(checkpoint)
        directory = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
        name = architecture_of(checkpoint.config).gguf
        keys = general_metadata(name, directory, checkpoint.config) | gguf_settings(checkpoint)
        if any((directory / name).exists() for name in _TOKENIZER_FILES):
            return keys | tokenizer_metadata(directory, checkpoint.config)
        return keys | {"tokenizer.ggml.model": "no_vocab"}

    def activation_block(self, format_name: str) -> int:
        """As llama.cpp does it."""
        return ACTIVATION_BLOCK.get(format_name, 0)

    def notes(self, checkpoint: Checkpoint, formats: Mapping[str, str]) -> tuple[str, ...]:
        """What llama.cpp does otherwise than the model's authors."""
        del formats
        return () if checkpoint.container == "gguf" else architecture_of(checkpoint.config).notes

    def layout(
        self, tensors: list[OutputTensor], formats: Mapping[str, str], metadata: Mapping[str, Any]
    ) -> Layout:
        """Header and exact offsets for these formats (tensor name -> format or plain dtype).

        Raises:
            FormatError: a format that GGUF has no type for, or whose block doesn't divide the rows.
        """
        rows = [(t.name, t.shape, formats.get(t.name, t.plain)) for t in tensors]
        entries, size = place_tensors(rows, self.alignment)
        described = {**metadata, "general.file_type": file_type(tensors, formats)}
        header = encode_header(described, entries, self.alignment)
        start = len(header)
        regions = {e.name: {WHOLE: Region(start + e.offset, e.nbytes)} for e in entries}
        return Layout({ITSELF: OutputFile(header, start + size)}, regions)

    def first_block(
        self, tensors: list[OutputTensor], metadata: Mapping[str, Any]
    ) -> tuple[list[OutputTensor], dict[str, Any]]:
        """A model of one transformer block, cut from this one."""
        return first_block(tensors, metadata)

    def parameters(
        self, tensors: Mapping[str, LazyTensor], metadata: Mapping[str, Any], wanted: Iterable[str]
    ) -> Mapping[str, LazyTensor]:
        """Parameters of transformers' model, by the table of architectures.

        Raises:
            ArchitectureError: no entry for this architecture, or tensors missing or surplus.
        """
        del wanted
        untyped = {key: plain(value) for key, value in metadata.items()}
        return to_hugging_face(Checkpoint(Path(), "gguf", tensors, (), metadata=untyped))[1]

    def recognises(self, stored: Checkpoint) -> bool:
        """See `Exporter.recognises`."""
        return stored.container == "gguf"

    def read_back(self, path: Path) -> Layout:
        """Parse a written file's header again, with the reader for files from anywhere.

        Raises:
            VerificationError: it doesn't read back.
        """
        return read_layout(path)


def _output(name: str, tensor: LazyTensor, plain: str) -> OutputTensor:
    quantizable = allows_quantization(name, tensor.shape)
    return OutputTensor(name, tensor, role_of(name, tensor.shape), quantizable, plain, block_of(name))


def _plain_type(name: str, tensor: LazyTensor) -> str:
    """Matrices keep a 16-bit source's type; what llama.cpp computes with directly is float32."""
    if not allows_quantization(name, tensor.shape):
        return "F32"
    return tensor.dtype if tensor.dtype in ("F32", "F16", "BF16") else "BF16"


def _carried_over(checkpoint: Checkpoint) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for key, value in checkpoint.metadata.items():
        if key in _DROPPED_KEYS or key.startswith(_DROPPED_PREFIXES):
            continue
        kind, item = checkpoint.metadata_types[key]
        keys[key] = Typed(value, ValueType(kind), None if item is None else ValueType(item))
    return keys | {"general.quantization_version": QUANTIZATION_VERSION}
