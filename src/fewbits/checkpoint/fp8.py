"""FP8 weights with scales in other tensors, as published by DeepSeek, vLLM and others.

For a weight W [N, K] the scale S may be
    one number                 [] or [1]                       per tensor
    one per row                [N] or [N, 1]                   per output channel
    one per block              [ceil(N / bn), ceil(K / bk)]    DeepSeek: 128 x 128
with W = code * S throughout; DeepSeek's name for S, ``weight_scale_inv``, doesn't mean a division.
Stacks of experts [E, N, K] have one more leading dimension on both.
Sources: the compressed-tensors documentation; DeepSeek-V3's README_WEIGHTS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from fewbits.checkpoint.checkpoint import Floats, LazyTensor
from fewbits.checkpoint.dtypes import FP8
from fewbits.errors import CheckpointError

_SCALE_SUFFIXES = ("_scale_inv", "_scale")
# Scales of activations and of the key-value cache: of no use for the weights.
_ACTIVATION_SUFFIXES = (
    ".input_scale",
    ".output_scale",
    ".k_scale",
    ".v_scale",
    ".q_scale",
    ".activation_scale",
)
_DEFAULT_BLOCK = (128, 128)


@dataclass(frozen=True)
class ScaledTensor(LazyTensor):
    """An FP8 weight with its scale applied.

    Attributes:
        name: the weight's.
        shape: the weight's.
        dtype: the weight's, e.g. ``F8_E4M3``.
        codes: the stored weight.
        scale: the stored scale.
        scale_shape: the scale's shape with as many dimensions as the weight has, and two at least.
        block: numbers that share a scale, per dimension.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    codes: LazyTensor
    scale: LazyTensor
    scale_shape: tuple[int, ...]
    block: tuple[int, ...]

    def rows(self, start: int, stop: int) -> Floats:
        """Rows start … stop as float32 [stop - start, K]."""
        values = self.codes.rows(start, stop)
        if not values.size:
            return values
        scale = self.scale.read().reshape(self.scale_shape)
        leading = np.unravel_index(np.arange(start, stop), self.shape[:-1] or (1,))  # (1,): a vector
        per_row = scale[
            tuple(i // b for i, b in zip(leading, self.block, strict=False))
        ]  # [n, blocks of a row]
        columns = np.arange(self.matrix[1]) // self.block[-1]
        values *= per_row[:, columns] if per_row.shape[-1] > 1 else per_row
        return values


def apply_scales(
    tensors: Mapping[str, LazyTensor], config: Mapping[str, Any]
) -> tuple[dict[str, LazyTensor], tuple[str, ...]]:
    """Tensors with FP8 scales applied and taken out, and what to tell the user about it.

    Raises:
        CheckpointError: a scale's shape doesn't fit its weight.
    """
    weights = {name: t for name, t in tensors.items() if t.dtype in FP8}
    if not weights:
        return dict(tensors), ()
    block = scale_block(config)
    scales = {name: scale for name in weights if (scale := _scale_of(name, tensors)) is not None}
    gone = {scale.name for scale in scales.values()}
    result: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        if name in scales:
            result[name] = _scaled(tensor, scales[name], block)
        elif name not in gone and not name.endswith(_ACTIVATION_SUFFIXES):
            result[name] = tensor
    kinds = ", ".join(sorted({t.dtype for t in weights.values()}))
    warning = (
        f"{len(weights)} weights are already 8-bit ({kinds}): what that lost stays lost, and quantizing "
        "again adds to it. Start from the original model if you can."
    )
    return result, (warning,)


def is_scale(name: str) -> bool:
    """Whether a tensor's name is that of a scale, of weights or activations."""
    return name.endswith((*_SCALE_SUFFIXES, *_ACTIVATION_SUFFIXES))


def scale_block(config: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and columns that share a scale, from config.json's quantization_config."""
    quantization = config.get("quantization_config")
    found: list[Any] = []
    if isinstance(quantization, dict):
        found.append(quantization.get("weight_block_size"))
        groups = quantization.get("config_groups")
        for group in groups.values() if isinstance(groups, dict) else ():
            weights = group.get("weights") if isinstance(group, dict) else None
            found.append(weights.get("block_structure") if isinstance(weights, dict) else None)
    for block in found:
        if isinstance(block, list) and len(block) == 2 and all(type(b) is int and b > 0 for b in block):
            return block[0], block[1]
    return _DEFAULT_BLOCK


def _scale_of(name: str, tensors: Mapping[str, LazyTensor]) -> LazyTensor | None:
    return next((tensors[name + suffix] for suffix in _SCALE_SUFFIXES if name + suffix in tensors), None)


def _scaled(weight: LazyTensor, scale: LazyTensor, block: tuple[int, int]) -> ScaledTensor:
    shape = weight.shape if len(weight.shape) > 1 else weight.matrix
    found = scale.shape
    if prod(found) == 1:
        found = (1,) * len(shape)
    elif len(found) == len(shape) - 1:
        found = (*found, 1)
    sizes = (*(1,) * (len(shape) - 2), *block)
    share = [
        1 if s == n else n if s == 1 else b if s == -(-n // b) else 0
        for n, s, b in zip(shape, found, sizes, strict=False)
    ]
    if len(found) != len(shape) or not all(share):
        raise CheckpointError(
            f"the scale {scale.name} doesn't fit the weight {weight.name}",
            found=f"{list(scale.shape)} for {list(weight.shape)}",
            allowed=f"one scale, one per row, or one per block of {block[0]} x {block[1]}",
            action="Declare another block size in config.json: quantization_config.weight_block_size.",
        )
    return ScaledTensor(weight.name, weight.shape, weight.dtype, weight, scale, found, tuple(share))
