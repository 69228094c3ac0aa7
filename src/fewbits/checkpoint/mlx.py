"""Reading what mlx-lm and fewbits packed for MLX.

X.weight, X.scales, X.biases   →   X.weight in, say, MLX4_G64

Experts lie in stacks [E, …], which are taken apart:

M.switch_mlp.up_proj.weight    →   M.experts.0.up_proj.weight, M.experts.1.up_proj.weight, …
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fewbits.checkpoint.checkpoint import LazyTensor, StoredTensor
from fewbits.checkpoint.file_tensor import FileTensor
from fewbits.checkpoint.packed import WEIGHT, PackedReader
from fewbits.formats.mlx import GROUPS, WIDTHS, affine_name
from fewbits.formats.scale_type import BFLOAT16, FLOAT16

PARTS = (WEIGHT, "scales", "biases")
MARKERS = ("scales",)
_SCALES = {scales.name: scales for scales in (BFLOAT16, FLOAT16)}
# Which map of an expert goes into which stack, by the module that has the experts. Source: `sanitize` in mlx-lm.
_STACKS = {
    "mlp": {"gate_proj": "gate_proj", "up_proj": "up_proj", "down_proj": "down_proj"},
    "block_sparse_moe": {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"},
}
_EXPERT = re.compile(r"(.+\.(mlp|block_sparse_moe))\.experts\.(\d+)\.(\w+)((?:\.\w+)?)")
_STACK = re.compile(r"(.+\.(mlp|block_sparse_moe))\.switch_mlp\.(\w+)((?:\.\w+)?)")


def stack_of(name: str) -> tuple[str, int] | None:
    """The stack that an expert's module or array lies in, and which slice of it that is; None for all others."""
    match = _EXPERT.fullmatch(name)
    if match is None or (stack := _STACKS[match[2]].get(match[4])) is None:
        return None
    return f"{match[1]}.switch_mlp.{stack}{match[5]}", int(match[3])


def unstacked(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The arrays with each stack of experts as one array per expert, under the names that the models' authors give."""
    found: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        match = _STACK.fullmatch(name)
        names = {stack: part for part, stack in _STACKS[match[2]].items()} if match else {}
        if match is None or match[3] not in names or not isinstance(tensor, FileTensor):
            found[name] = tensor
            continue
        count, *shape = tensor.shape
        size = tensor.nbytes // max(count, 1)
        for i in range(count):
            expert = f"{match[1]}.experts.{i}.{names[match[3]]}{match[4]}"
            place = tensor.offset + i * size
            found[expert] = FileTensor(expert, tuple(shape), tensor.dtype, tensor.path, place, size)
    return found


class MlxReader(PackedReader):
    """MLX's modules, by the config's bits, group and mode and its exceptions by module."""

    markers = MARKERS
    parts = PARTS

    def __init__(self, described: Mapping[str, Any]) -> None:
        self._described = described

    def arrays(self, tensors: Mapping[str, LazyTensor]) -> Mapping[str, LazyTensor]:
        """See `PackedReader.arrays`."""
        return unstacked(tensors)

    def format_of(self, module: str, parts: Mapping[str, StoredTensor]) -> tuple[str, tuple[int, int]] | None:
        """See `PackedReader.format_of`."""
        stack = stack_of(module)
        exception = self._described.get(stack[0] if stack else module)
        described = exception if isinstance(exception, Mapping) else self._described
        width, group, mode = (
            described.get("bits"),
            described.get("group_size"),
            described.get("mode", "affine"),
        )
        words = parts.get(WEIGHT)
        if width not in WIDTHS or words is None or len(words.shape) != 2 or words.shape[1] * 32 % width:
            return None
        shape = (words.shape[0], words.shape[1] * 32 // width)
        if (mode, width, group) == ("mxfp4", 4, 32):
            return "MLX_MXFP4", shape
        scales = _SCALES.get(parts["scales"].dtype)
        if mode != "affine" or group not in GROUPS or scales is None:
            return None
        return affine_name(width, group, scales), shape


def reader_for(config: Mapping[str, Any], quantization: Mapping[str, Any]) -> PackedReader | None:
    """The reader for a directory described so; None if MLX hasn't described it."""
    return MlxReader(quantization) if isinstance(config.get("quantization"), Mapping) else None
