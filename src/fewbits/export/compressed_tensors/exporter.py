"""Writes a Hugging Face directory whose linear layers are packed as compressed-tensors has them.

The embedding and the head stay as they are: few runtimes read them packed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fewbits.algorithms.static_scales import DEFAULT_RULE, E4M3_GRID, INT8_GRID, global_scale, static_scale
from fewbits.calibration.statistics import Statistics
from fewbits.checkpoint.checkpoint import Checkpoint, Floats
from fewbits.checkpoint.compressed_tensors import INPUT_PARTS, MARKERS, PARTS
from fewbits.checkpoint.packed import WEIGHT
from fewbits.errors import PlanError
from fewbits.export.compressed_tensors.quantization_config import quantization_config
from fewbits.export.exporter import OutputTensor
from fewbits.export.hugging_face.directory import HuggingFaceDirectory
from fewbits.export.hugging_face.safetensors_files import Array
from fewbits.export.kv_cache import FP8, FP8_PER_HEAD, scale_tensor
from fewbits.formats import get_format
from fewbits.formats.activation_grid import ActivationGrid
from fewbits.formats.compressed_tensors import (
    EVERYWHERE,
    INPUT_GLOBAL_SCALE,
    INPUT_SCALE,
    SCHEMES,
    SHAPE_PART,
    rare,
)


class CompressedTensorsExporter(HuggingFaceDirectory):
    """compressed-tensors' container."""

    name = "compressed-tensors"
    formats = tuple(sorted(SCHEMES, key=lambda name: -get_format(name).bits))
    planned = EVERYWHERE
    default_format = "INT4_G128_SYM"  # what the most runtimes compute the fastest
    markers = MARKERS
    parts = (*INPUT_PARTS, *PARTS)
    kv_caches = (FP8, FP8_PER_HEAD)

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
        return (*notes, *super().notes(checkpoint, formats))

    def activation_grid(self, format_name: str) -> ActivationGrid | None:
        """See `Exporter.activation_grid`."""
        scheme = SCHEMES.get(format_name)
        return None if scheme is None else scheme.activation_grid

    def cache_scale(self, attention: str, part: str, scales: Floats, block: int | None) -> OutputTensor:
        """See `Exporter.cache_scale`: [1], or [H, 1, 1]."""
        numbers = scales if len(scales) == 1 else scales.reshape(-1, 1, 1)
        return scale_tensor(f"{attention}.{part}_scale", numbers, "BF16", block)

    def description(self, tensors: Sequence[OutputTensor], formats: Mapping[str, str]) -> dict[str, Any]:
        """See `HuggingFaceDirectory.description`."""
        described = quantization_config(tensors, formats)
        return {} if described is None else {"quantization_config": described}

    def constants(self, tensor: OutputTensor, name: str) -> list[Array]:
        """The weight's shape, which packed words don't tell, and what calibration found for the inputs.

        Raises:
            PlanError: it found nothing, since there was none.
        """
        prefix, scheme = tensor.name.removesuffix(WEIGHT), SCHEMES[name]
        arrays = []
        if scheme.shape_part:
            shape = np.array(tensor.shape, "<i8").tobytes()
            arrays.append(Array(prefix + SHAPE_PART, "I64", (2,), tensor.name, SHAPE_PART, content=shape))
        if part := scheme.input_part:
            if tensor.input_scale is None:
                raise PlanError(
                    f"{name} has a scale of activations in the file, which calibration finds",
                    found="no calibration", action="Use --effort balanced, or a format without",
                )  # fmt: skip
            scale = np.array([tensor.input_scale(name)], "<f4").tobytes()
            arrays.append(Array(prefix + part, "F32", (1,), tensor.name, part, content=scale))
        return arrays

    def input_scale(self, format_name: str, statistics: Statistics, rule: str = DEFAULT_RULE) -> float:
        """See `Exporter.input_scale`."""
        scheme = SCHEMES[format_name]
        if scheme.input_part == INPUT_GLOBAL_SCALE:
            return global_scale(statistics)
        if scheme.inputs is None or scheme.input_part != INPUT_SCALE:
            return super().input_scale(format_name, statistics, rule)
        return static_scale(statistics, INT8_GRID if scheme.inputs["type"] == "int" else E4M3_GRID, rule)
