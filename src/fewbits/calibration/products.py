"""Matrix products of calibration: in bfloat16 where the processor multiplies such numbers faster than float32.

Sums are float32 within a product, which is rounded to bfloat16 at its end. What lies between blocks is bfloat16 in any
case (`boundaries`), and weights of most checkpoints are. Statistics are means over thousands of tokens: docs/log.md,
2026-11-30, has what it changes.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import linear

from fewbits.language_model.linear_calls import LinearCalls

# Rows and columns from which on a product is worth the conversion.
WIDE = 256


@cache
def has_short_products() -> bool:
    """Whether the processor has instructions for products of bfloat16 (AVX-512 BF16 or AMX)."""
    cpu = torch.cpu
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(cpu, name)()) for name in names if hasattr(cpu, name))


def are_short(*sizes: int) -> bool:
    """Whether a product of matrices with these rows and columns is computed in bfloat16."""
    return has_short_products() and min(sizes) >= WIDE


def product(left: Tensor, right: Tensor) -> Tensor:
    """float32 [..., K] times [K, N]: float32 [..., N]."""
    if are_short(*right.shape):
        return (left.bfloat16() @ right.bfloat16()).float()
    return left @ right


class Products(LinearCalls):
    """Within this context linear maps are such products."""

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See `linear_product`."""
        return linear_product(x, weight, bias)


def linear_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """X Wᵀ + bias of x float32 [..., K] and weight [N, K]: float32 [..., N]."""
    if not are_short(*weight.shape):
        return linear(x, weight, bias)
    found = product(x, weight.T)
    return found if bias is None else found + bias
