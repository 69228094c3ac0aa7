"""The directory of safetensors files that becomes OpenVINO's graph: the graph's constants, by module.

The embedding and the head are quantized too, as NNCF does it. config.json's ``quantization_config`` lists the format of
each quantized module.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fewbits.checkpoint.checkpoint import Checkpoint
from fewbits.checkpoint.openvino import MARKERS, METHOD, PARTS
from fewbits.export.exporter import OutputTensor
from fewbits.export.hugging_face.directory import HuggingFaceDirectory, module_of
from fewbits.formats import get_format
from fewbits.formats.openvino import FORMATS, GROUPS, WIDTHS, openvino_name

# The plugin for CPUs rounds the inputs of compressed weights to 8 bits in blocks of this many
# (DYNAMIC_QUANTIZATION_GROUP_SIZE, unless the user sets it otherwise).
ACTIVATION_BLOCK = 32


class OpenvinoDirectory(HuggingFaceDirectory):
    """What is converted to OpenVINO's graph."""

    name = "openvino-weights"
    method = METHOD
    formats = tuple(sorted(FORMATS, key=lambda name: -get_format(name).bits))
    # What NPUs take, too. The last is what NNCF gives the embedding and the head.
    planned = (
        *(openvino_name(width, group, symmetric=True) for width in WIDTHS for group in GROUPS),
        openvino_name(8, 0, symmetric=True),
    )
    default_format = "OV4_G128_SYM"
    markers = MARKERS
    parts = PARTS
    roles = ("linear", "embedding", "head")
    column_multiple = 2  # two codes of 4 bits fill a byte

    def tensors(self, checkpoint: Checkpoint) -> list[OutputTensor]:
        """See `HuggingFaceDirectory.tensors`; without a tied head's copy of the embedding, which the graph has once."""
        tensors = super().tensors(checkpoint)
        if not checkpoint.config.get("tie_word_embeddings"):
            return tensors
        return [tensor for tensor in tensors if tensor.role != "head"]

    def activation_block(self, format_name: str) -> int:
        """See `Exporter.activation_block`."""
        return ACTIVATION_BLOCK if format_name in self.formats else 0

    def notes(self, checkpoint: Checkpoint, formats: Mapping[str, str]) -> tuple[str, ...]:
        """Which devices prefer other formats, and which weights stayed as they are."""
        notes = super().notes(checkpoint, formats)
        if found := sorted(
            {name for name in formats.values() if name in FORMATS and not name.endswith("_SYM")}
        ):
            return (f"{', '.join(found)}: for CPUs and GPUs; NPUs want formats that end in _SYM", *notes)
        return notes

    def tied(self, tensors: Iterable[OutputTensor]) -> list[list[str]]:
        """None: the graph has a product of its own for each weight."""
        del tensors
        return []

    def description(self, tensors: Sequence[OutputTensor], formats: Mapping[str, str]) -> dict[str, Any]:
        """The format of each quantized module."""
        used = self.formats_used(tensors, formats)
        modules = {module_of(t): used[t.name] for t in tensors if t.name in used}
        if not modules:
            return {}
        return {"quantization_config": {"quant_method": METHOD, "modules": modules}}
