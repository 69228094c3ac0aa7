"""The directory that a runtime's graph is converted from: our formats' arrays, and which module has which format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fewbits.checkpoint.graph_directory import MARKERS, METHOD, PARTS
from fewbits.export.exporter import OutputTensor
from fewbits.export.hugging_face.directory import HuggingFaceDirectory, module_of


class GraphDirectory(HuggingFaceDirectory):
    """A directory for a `Converter`; subclasses say which formats."""

    markers = MARKERS
    parts = PARTS
    roles = ("linear", "embedding", "head")

    def description(self, tensors: Sequence[OutputTensor], formats: Mapping[str, str]) -> dict[str, Any]:
        """See `HuggingFaceDirectory.description`."""
        used = self.formats_used(tensors, formats)
        modules = {
            module_of(t): {"format": used[t.name], "shape": list(t.shape)} for t in tensors if t.name in used
        }
        return {"quantization_config": {"quant_method": METHOD, "modules": modules}} if modules else {}
