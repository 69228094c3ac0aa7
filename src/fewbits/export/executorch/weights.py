"""Writes the directory that a program for ExecuTorch is made from: XNNPACK's integers under Hugging Face's names.

Linear layers, the embedding and the head are quantized. No runtime loads it; `ExecutorchConverter` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fewbits.checkpoint.xnnpack import MARKERS, METHOD, PARTS
from fewbits.export.exporter import OutputTensor
from fewbits.export.hugging_face.directory import HuggingFaceDirectory
from fewbits.formats.xnnpack import NAMES, xnnpack_name


class ExecutorchWeights(HuggingFaceDirectory):
    """The intermediate of ``--to executorch``."""

    name = "executorch-weights"
    formats = NAMES
    default_format = xnnpack_name(4, 32)
    method = METHOD
    markers = MARKERS
    parts = PARTS
    roles = ("linear", "embedding", "head")
    column_multiple = 2  # two codes are a byte

    def tied(self, tensors: Iterable[OutputTensor]) -> list[list[str]]:
        """None: ExecuTorch computes every matrix by itself."""
        del tensors
        return []

    def description(self, tensors: Sequence[OutputTensor], formats: Mapping[str, str]) -> dict[str, Any]:
        """That some modules are quantized; what they are, their arrays tell."""
        return (
            {"quantization_config": {"quant_method": self.method}}
            if self.formats_used(tensors, formats)
            else {}
        )
