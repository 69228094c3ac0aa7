"""Writes a Hugging Face directory that mlx-lm loads, for Apple silicon.

The embedding and the head are quantized too, as mlx-lm does it. config.json says under ``quantization``, and again
under ``quantization_config``, what most modules have and by name what differs; a module without scales isn't quantized.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fewbits.checkpoint.checkpoint import Checkpoint
from fewbits.checkpoint.mlx import MARKERS, PARTS
from fewbits.export.exporter import OutputTensor
from fewbits.export.hugging_face.directory import HuggingFaceDirectory, module_of, usual
from fewbits.export.hugging_face.naming_rules import experts
from fewbits.export.hugging_face.side_files import CONFIG
from fewbits.formats import get_format
from fewbits.formats.mlx import GROUPS, WIDTHS, AffineFormat, affine_name
from fewbits.formats.scale_type import BFLOAT16, FLOAT16

_AFFINE = [
    affine_name(width, group, scales)
    for width in WIDTHS
    for group in GROUPS
    for scales in (BFLOAT16, FLOAT16)
]


class MlxExporter(HuggingFaceDirectory):
    """MLX's container."""

    name = "mlx"
    formats = tuple(sorted((*_AFFINE, "MLX_MXFP4"), key=lambda name: -get_format(name).bits))
    planned = tuple(affine_name(width, group) for width in WIDTHS for group in GROUPS)
    default_format = "MLX4_G64"  # mlx-lm's
    markers = MARKERS
    parts = PARTS
    roles = ("linear", "embedding", "head")
    column_multiple = 32
    framework = "mlx"
    method = ""

    def metadata(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """See `HuggingFaceDirectory.metadata`; config.json says how positions are encoded in the words of mlx-lm too.

        mlx-lm (0.32) knows transformers' keys from before version 5 only, and takes its default where they are missing.
        """
        found = super().metadata(checkpoint)
        config = found[CONFIG]
        described = config.get("rope_parameters")
        if isinstance(described, Mapping) and "rope_theta" in described:
            older: dict[str, Any] = {"rope_theta": described["rope_theta"]}
            if described.get("rope_type", "default") != "default":
                older["rope_scaling"] = {k: v for k, v in described.items() if k != "rope_theta"}
            found[CONFIG] = {**older, **config}
        return found

    def tied(self, tensors: Iterable[OutputTensor]) -> list[list[str]]:
        """All experts of a block, which mlx-lm stacks."""
        return experts(t.name for t in tensors if t.quantizable)

    def description(self, tensors: Sequence[OutputTensor], formats: Mapping[str, str]) -> dict[str, Any]:
        """mlx-lm's description."""
        used = self.formats_used(tensors, formats)
        chosen = {module_of(t): _described(used[t.name]) for t in tensors if t.name in used}
        if not chosen:
            return {}
        most = usual(chosen.values())
        described = {**most, **{module: d for module, d in chosen.items() if d != most}}
        return {"quantization": described, "quantization_config": described}


def _described(name: str) -> dict[str, Any]:
    fmt = get_format(name)
    if isinstance(fmt, AffineFormat):
        return {"group_size": fmt.block, "bits": fmt.width, "mode": "affine"}
    return {"group_size": fmt.block, "bits": 4, "mode": "mxfp4"}
