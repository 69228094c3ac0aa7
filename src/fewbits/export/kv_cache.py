"""Scales of a quantized key-value cache as tensors of a Hugging Face directory, and what config.json says of them.

Runtimes keep keys and values as FP8 E4M3 numbers of x / scale. Scales are rounded up to bfloat16, which every dtype
that a model is loaded in holds exactly, so that all runtimes use the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fewbits.checkpoint.checkpoint import Floats, LazyTensor
from fewbits.checkpoint.kv_cache import KEY_SCALE
from fewbits.errors import PlanError
from fewbits.export.exporter import Exporter, OutputTensor
from fewbits.formats.minifloat import SMALLEST_SCALE, round_bfloat16

# What --kv-cache of `quantize` may be -> whether each head has a scale of its own.
FP8, FP8_PER_HEAD = "fp8", "fp8_per_head"
# Largest finite number of E4M3.
LARGEST = np.float32(448.0)


class Constant(LazyTensor):
    """Numbers that are known already.

    Args:
        name: of the tensor.
        numbers: float32 of any shape.
        dtype: that they are stored in.
    """

    def __init__(self, name: str, numbers: Floats, dtype: str) -> None:
        self.name, self.shape, self.dtype = name, numbers.shape, dtype
        self._numbers = numbers

    def rows(self, start: int, stop: int) -> Floats:
        """Rows start … stop as float32 [stop - start, K]."""
        return self._numbers.reshape(self.matrix)[start:stop].copy()


def check_kv_cache(exporter: Exporter, name: str) -> None:
    """Refuse a quantized cache that a container has no place for.

    Raises:
        PlanError: naming what it has.
    """
    if name not in exporter.kv_caches:
        if not exporter.kv_caches:
            raise PlanError(
                f"--to {exporter.name} has no place for scales of a key-value cache", found=f"--kv-cache {name}",
                action="Leave it out: that runtime is told when it starts, and `fewbits evaluate --kv-cache` "
                "measures what it costs",
            )  # fmt: skip
        raise PlanError(
            f"{exporter.name} has no such key-value cache",
            found=f"--kv-cache {name}",
            allowed=", ".join(exporter.kv_caches),
        )


def scale_tensor(name: str, numbers: Floats, dtype: str, block: int | None) -> OutputTensor:
    """A tensor of scales, float32 of the shape that the container has for them."""
    source = Constant(name, numbers, "F32")
    return OutputTensor(name, source, "other", quantizable=False, plain=dtype, block=block)


def cache_scales(peaks: Floats, *, per_head: bool) -> Floats:
    """Scales with which nothing that calibration saw is clipped: largest magnitudes [H, D] -> float32 [1] or [H]."""
    largest = peaks.max(axis=1) if per_head else peaks.max(keepdims=True).reshape(1)
    scales = np.maximum(largest.astype(np.float32) / LARGEST, np.float32(SMALLEST_SCALE))
    rounded = round_bfloat16(scales)
    # A bfloat16 has 8 bits of mantissa: the next one is at most 2**-7 larger.
    up = round_bfloat16(rounded * np.float32(1 + 2**-7))
    return np.where(rounded < scales, up, rounded).astype(np.float32)


def refuse_cache_alone(tensors: Iterable[OutputTensor]) -> None:
    """Refuse scales of the cache where no weight is quantized: config.json would describe nothing.

    Raises:
        PlanError: there are some.
    """
    if kv_cache_scheme(tensors) is not None:
        raise PlanError(
            "--kv-cache needs quantized weights beside it", found="all tensors in floating point",
            action="Choose a format for the weights; 8 bits cost the least",
        )  # fmt: skip


def kv_cache_scheme(tensors: Iterable[OutputTensor]) -> dict[str, Any] | None:
    """What config.json says of the cache whose scales are among the tensors; None if there are none."""
    shapes = [t.shape for t in tensors if t.name.endswith(KEY_SCALE)]
    if not shapes:
        return None
    described: Mapping[str, Any] = {
        "dynamic": False, "group_size": None, "num_bits": 8,
        "strategy": "attn_head" if max(map(len, shapes)) > 1 else "tensor",
        "symmetric": True, "type": "float",
    }  # fmt: skip
    return dict(described)
