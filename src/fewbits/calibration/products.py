"""Matrix products of calibration: in bfloat16 where the processor multiplies such numbers faster than float32.

Sums are float32 within a product, which is rounded to bfloat16 at its end. What lies between blocks is bfloat16 in any
case (`boundaries`), and weights of most checkpoints are. Statistics are means over thousands of tokens: docs/log.md,
2026-11-30, has what it changes.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

# Rows and columns from which on a product is worth the conversion.
WIDE = 256


@cache
def has_short_products() -> bool:
    """Whether the processor has instructions for products of bfloat16 (AVX-512 BF16 or AMX)."""
    cpu = torch.cpu
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(cpu, name)()) for name in names if hasattr(cpu, name))


def product(left: Tensor, right: Tensor) -> Tensor:
    """float32 [..., K] times [K, N]: float32 [..., N]."""
    if has_short_products() and min(right.shape) >= WIDE:
        return (left.bfloat16() @ right.bfloat16()).float()
    return left @ right
