"""A decoder's layers as ExecuTorch's XNNPACK partitioner recognises them, with codes and scales that are given.

    x ──► choose, quantize, dequantize: 8 bits per token, asymmetric ──► linear ──►
    codes, scales ──► dequantize: 4 or 8 bits, symmetric ───────────────►

XNNPACK's delegate turns the first line into a dynamically quantized tensor (qdint8) and the second into constants
(qbint4 by group, qcint4 and qcint8 by row), and multiplies integers: none of these operators is left in the program.
Embeddings are ExecuTorch's own operators, which look up rows of 4 or 8 bits. Importing this takes ``executorch``.
"""

from __future__ import annotations

from typing import Any

import executorch.exir  # it registers the operators of embeddings
import executorch.kernels.quantized  # noqa: F401  their variants at run time
import torch
from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  it registers those of attention
from torch import Tensor, nn
from torchao.quantization.quant_primitives import (
    MappingType,
    choose_qparams_affine,
    dequantize_affine,
    quantize_affine,
)

from fewbits.checkpoint.packed import PackedTensor
from fewbits.formats.bit_packing import pack_nibbles
from fewbits.formats.format import QTensor
from fewbits.formats.xnnpack import XnnpackFormat

ATTENTION = "executorch_cache"


class QuantizedLinear(nn.Module):
    """A linear layer of 4 or 8-bit weights, whose inputs are rounded to 8 bits.

    Attributes:
        codes: int8 [N, K].
        scale: float32 [N, G], or [N] with a scale for each row.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor

    def __init__(self, weight: QTensor, bias: Tensor | None) -> None:
        super().__init__()
        codes, scale, fmt = _signed(weight)
        self.group, self.low, self.high = fmt.block, -(1 << (fmt.width - 1)), (1 << (fmt.width - 1)) - 1
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale if fmt.block else scale.reshape(-1))
        self.register_buffer("zero", torch.zeros(self.scale.shape, dtype=torch.int8))
        self.bias = None if bias is None else nn.Parameter(bias.float(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """float32 [..., K] -> float32 [..., N]."""
        return nn.functional.linear(_rounded(x), self._weight(), self.bias)

    def _weight(self) -> Tensor:
        if self.group:
            dequantized: Tensor = dequantize_affine(
                self.codes, (1, self.group), self.scale, self.zero, torch.int8, self.low, self.high,
                output_dtype=torch.float32,
            )  # fmt: skip
            return dequantized
        # By row; the operator above would be taken for one group, whose scale the delegate rounds to bfloat16.
        by_row: Tensor = torch.ops.quantized_decomposed.dequantize_per_channel.default(
            self.codes, self.scale, self.zero, 0, self.low, self.high, torch.int8
        )
        return by_row


class QuantizedEmbedding(nn.Module):
    """An embedding of 4 or 8-bit rows.

    Attributes:
        rows: uint8 [N, K / 2], even column in the high nibble, or int8 [N, K].
        scale: float32 [N, G].
    """

    rows: Tensor
    scale: Tensor

    def __init__(self, weight: QTensor, factor: float) -> None:
        super().__init__()
        codes, scale, fmt = _signed(weight)
        self.factor, self.low, self.high = factor, -(1 << (fmt.width - 1)), (1 << (fmt.width - 1)) - 1
        if fmt.width == 4:
            swapped = weight.codes.reshape(len(codes), -1, 2)[:, :, ::-1].reshape(weight.codes.shape)
            codes = torch.from_numpy(pack_nibbles(swapped))
        self.register_buffer("rows", codes)
        self.register_buffer("scale", scale)
        packet = torch.ops.quantized_decomposed
        self._lookup = packet.embedding_4bit.dtype if fmt.width == 4 else packet.embedding_byte.dtype

    def forward(self, indices: Tensor) -> Tensor:
        """int64 [..., T] -> float32 [..., T, K]."""
        found: Tensor = self._lookup(
            self.rows, self.scale, None, self.low, self.high, indices, dtype=torch.float32
        )
        return found if self.factor == 1 else found * self.factor


def _signed(weight: QTensor) -> tuple[Tensor, Tensor, XnnpackFormat]:
    """Codes int8 [N, K] and scales float32 [N, G]."""
    fmt = weight.format
    assert isinstance(fmt, XnnpackFormat)
    codes = weight.codes.astype("int16") - (1 << (fmt.width - 1))
    scale: Any = weight.params
    return torch.from_numpy(codes.astype("int8")), torch.from_numpy(scale.scale.reshape(len(codes), -1)), fmt


def _rounded(x: Tensor) -> Tensor:
    """Inputs in 8 bits and back, as XNNPACK does it at run time."""
    block = [1] * (x.dim() - 1) + [x.shape[-1]]
    scale, zero = choose_qparams_affine(
        x,
        MappingType.ASYMMETRIC,
        block,
        torch.int8,
        quant_min=-128,
        quant_max=127,
        zero_point_dtype=torch.int8,
    )
    codes = quantize_affine(x, block, scale, zero, torch.int8, -128, 127)
    back: Tensor = dequantize_affine(
        codes, block, scale, zero, torch.int8, -128, 127, output_dtype=torch.float32
    )
    return back


def whole(tensor: PackedTensor) -> QTensor:
    """All rows."""
    return tensor.quantized(0, tensor.shape[0])


def cached_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None = None,
    cache_start: Any = 0,
    **other: Any,
) -> tuple[Tensor, None]:
    """Causal attention to all that a module's `key_cache` and `value_cache` hold, by ExecuTorch's operators.

    Args:
        module: transformers' attention, to which `add_caches` has given caches float32 [1, context, H, D].
        query: float32 [1, H', T, D].
        key: float32 [1, H, T, D].
        value: likewise.
        mask: none.
        scaling: factor of scores.
        cache_start: tokens that the caches hold.
        other: what some models want besides; `ExecutorchConverter.check` refuses those that matter.

    Returns:
        float32 [1, T, H', D].
    """
    del mask, other
    torch.ops.llama.update_cache(key.transpose(1, 2).contiguous(), module.key_cache, cache_start)
    torch.ops.llama.update_cache(value.transpose(1, 2).contiguous(), module.value_cache, cache_start)
    result = torch.ops.llama.custom_sdpa(
        query.transpose(1, 2).contiguous(),
        module.key_cache,
        module.value_cache,
        cache_start,
        None,
        0.0,
        True,
        scaling,
    )
    return result, None
