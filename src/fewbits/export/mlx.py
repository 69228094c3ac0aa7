"""Writes a Hugging Face directory that mlx-lm loads, for Apple silicon.

The embedding and the head are quantized too, as mlx-lm does it. config.json says under ``quantization``, and again
under ``quantization_config``, what most modules have and by name what differs; a module without scales isn't quantized.
Experts are stacked as mlx-lm's models have them, since it doesn't stack packed ones itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fewbits.checkpoint.checkpoint import Checkpoint, LazyTensor
from fewbits.checkpoint.mlx import MARKERS, PARTS, stack_of, unstacked
from fewbits.export.exporter import OutputTensor
from fewbits.export.hugging_face.directory import HuggingFaceDirectory, module_of, usual
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
        """See `HuggingFaceDirectory.metadata`; config.json also has the names that mlx-lm's models look for."""
        found = super().metadata(checkpoint)
        return {**found, CONFIG: with_earlier_names(found[CONFIG])}

    def stack(self, array: str) -> tuple[str, int] | None:
        """See `HuggingFaceDirectory.stack`."""
        return stack_of(array)

    def arrays(self, tensors: Mapping[str, LazyTensor]) -> Mapping[str, LazyTensor]:
        """See `HuggingFaceDirectory.arrays`."""
        return unstacked(tensors)

    def tensors(self, checkpoint: Checkpoint) -> list[OutputTensor]:
        """See `HuggingFaceDirectory.tensors`; experts that mlx-lm's stacks aren't known of stay as they are."""
        found = super().tensors(checkpoint)
        return [replace(t, quantizable=False) if _unknown_expert(t.name) else t for t in found]

    def notes(self, checkpoint: Checkpoint, formats: Mapping[str, str]) -> tuple[str, ...]:
        """Which weights stayed as they are."""
        notes = super().notes(checkpoint, formats)
        if left := [name for name in formats if _unknown_expert(name)]:
            said = f"{len(left)} weights of experts aren't quantized, such as {left[0]}"
            return (f"{said}: how mlx-lm stacks them isn't known", *notes)
        return notes

    def fused(self, names: Iterable[str]) -> list[list[str]]:
        """Nothing: mlx-lm computes each map alone."""
        del names
        return []

    def tied(self, tensors: Iterable[OutputTensor]) -> list[list[str]]:
        """The experts of a block that are one stack."""
        stacks: dict[str, list[str]] = {}
        for tensor in tensors:
            if tensor.quantizable and (found := stack_of(tensor.name)):
                stacks.setdefault(found[0], []).append(tensor.name)
        return [names for names in stacks.values() if len(names) > 1]

    def description(self, tensors: Sequence[OutputTensor], formats: Mapping[str, str]) -> dict[str, Any]:
        """mlx-lm's description."""
        used = self.formats_used(tensors, formats)
        chosen = {_module(t): _described(used[t.name]) for t in tensors if t.name in used}
        if not chosen:
            return {}
        most = usual(chosen.values())
        described = {**most, **{module: d for module, d in chosen.items() if d != most}}
        return {"quantization": described, "quantization_config": described}


def with_earlier_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with what transformers 5 has renamed under the names from before, too, which many models of mlx-lm need.

    They find no ``rope_theta`` in ``rope_parameters``, and fail or take a default; ``num_local_experts`` likewise.
    """
    earlier: dict[str, Any] = {}
    rope = config.get("rope_parameters")
    if isinstance(rope, Mapping) and "rope_theta" in rope:  # else it is one for each kind of layer
        earlier["rope_theta"] = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default":
            earlier["rope_scaling"] = {k: v for k, v in rope.items() if k != "rope_theta"}
    if "num_local_experts" in config:
        earlier["num_experts"] = config["num_local_experts"]
    return {**earlier, **config}


def _module(tensor: OutputTensor) -> str:
    """Name of the module that it is, or is a slice of, in mlx-lm."""
    found = stack_of(module_of(tensor))
    return found[0] if found else module_of(tensor)


def _unknown_expert(name: str) -> bool:
    return ".experts." in name and stack_of(name) is None


def _described(name: str) -> dict[str, Any]:
    fmt = get_format(name)
    if isinstance(fmt, AffineFormat):
        return {"group_size": fmt.block, "bits": fmt.width, "mode": "affine"}
    return {"group_size": fmt.block, "bits": 4, "mode": "mxfp4"}
