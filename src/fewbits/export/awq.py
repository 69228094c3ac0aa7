"""Writes a Hugging Face directory for AWQ's kernels: vLLM, SGLang, TGI, transformers with GPTQModel.

config.json's ``quantization_config`` is AutoAWQ's, which knows one format for all quantized modules; those that aren't
quantized are listed by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fewbits.checkpoint.awq import MARKERS, PARTS
from fewbits.checkpoint.packed import WEIGHT
from fewbits.errors import PlanError
from fewbits.export.exporter import OutputTensor
from fewbits.export.hugging_face.directory import HuggingFaceDirectory
from fewbits.formats import get_format
from fewbits.formats.awq import GROUPS


class AwqExporter(HuggingFaceDirectory):
    """AWQ's container."""

    name = "awq"
    formats = tuple(f"AWQ4_G{group}" for group in GROUPS)
    default_format = "AWQ4_G128"
    markers = MARKERS
    parts = PARTS
    row_multiple = 8  # eight rows are one word
    column_multiple = 32

    def tied(self, tensors: Iterable[OutputTensor]) -> list[list[str]]:
        """All of them: the config has one format for the whole model."""
        names = [t.name for t in tensors if t.quantizable]
        return [names] if len(names) > 1 else []

    def description(self, tensors: Sequence[OutputTensor], formats: Mapping[str, str]) -> dict[str, Any]:
        """AutoAWQ's description.

        Raises:
            PlanError: several formats.
        """
        chosen = {formats[t.name] for t in tensors if formats[t.name] in self.formats}
        if not chosen:
            return {}
        if len(chosen) > 1:
            raise PlanError("awq holds one format in a model", found=", ".join(sorted(chosen)))
        left = [t for t in tensors if t.role == "linear" and formats[t.name] not in self.formats]
        names = [t.name.removesuffix(f".{WEIGHT}") for t in left]
        described = {
            "bits": 4,
            "group_size": get_format(*chosen).block,
            "modules_to_not_convert": ["lm_head", *names],
            "quant_method": "awq",
            "version": "gemm",
            "zero_point": True,
        }
        return {"quantization_config": described}
