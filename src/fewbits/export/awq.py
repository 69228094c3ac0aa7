"""Writes a Hugging Face directory for AWQ's kernels: vLLM, SGLang, TGI, transformers with GPTQModel.

config.json's ``quantization_config`` is AutoAWQ's, which knows one format for all quantized modules; those that aren't
quantized are listed by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fewbits.checkpoint.awq import MARKERS, PARTS
from fewbits.export.exporter import OutputTensor
from fewbits.export.hugging_face.directory import HuggingFaceDirectory
from fewbits.formats import get_format
from fewbits.formats.awq import GROUPS


class AwqExporter(HuggingFaceDirectory):
    """AWQ's container."""

    name = "awq"
    formats = tuple(f"AWQ4_G{group}" for group in GROUPS)
    default_format = "AWQ4_G128"
    one_format = True
    fallbacks = False
    experts_note = (
        "transformers has the experts of a block in one parameter and doesn't load them packed; vLLM does"
    )
    markers = MARKERS
    parts = PARTS
    row_multiple = 8  # eight rows are one word
    column_multiple = 32

    def description(self, tensors: Sequence[OutputTensor], formats: Mapping[str, str]) -> dict[str, Any]:
        """AutoAWQ's description.

        Raises:
            PlanError: several formats.
        """
        chosen = set(self.formats_used(tensors, formats).values())
        if not chosen:
            return {}
        described = {
            "bits": 4,
            "group_size": get_format(*chosen).block,
            "modules_to_not_convert": ["lm_head", *self.linear_left(tensors, formats)],
            "quant_method": "awq",
            "version": "gemm",
            "zero_point": True,
        }
        return {"quantization_config": described}
