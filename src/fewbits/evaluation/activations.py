"""How runtimes round activations: the one place that knows it.

In llama.cpp, on the CPU, a quantized weight is never multiplied with float32 activations. Each row of
activations is first rounded to the type that the weight type's dot product takes (`vec_dot_type` in
ggml-cpu.c's table `type_traits_cpu`; the repacked kernels take the same types):

    Q8_0  blocks of 32:   d = max|x| / 127, kept as float16;  q = round(x * 127 / max|x|);  value d * q
    Q8_1  as Q8_0, with the block's sum beside it
    Q8_K  blocks of 256:  as Q8_0, with d kept as float32
    F16, BF16             x rounded to that type

On small models at 8 bits this costs as much as the rounding of the weights, so an evaluation that leaves
it out is not what the user of the file will see. Left out here, being far smaller: Q8_1's float16 rounding
of the sum. The key-value cache is simulated apart from it, where asked for (kv_cache.py).

Where a directory says that activations have 8 bits, each token's are rounded with a scale of its own:

    INT8   d = max|x| / 127;  value d * round(x / d)       vLLM's dynamic_scaled_int8_quant
    FP8    d = max|x| / 448;  value d * E4M3(x / d)        vLLM's dynamic_per_token_scaled_fp8_quant

FP8 also in groups of 128 of a token (vLLM's per_token_group_quant_fp8), or all tokens' with one scale d that the file
holds (static). Activations of 4 bits are E2M1 numbers in groups:

    NVFP4  16 share d = E4M3(max|x| / 6 * g) / g with the file's g;  value d * E2M1(x / d)    scaled_fp4_quant
    MXFP4  32 share d, the power of two of max|x| less 2;            value d * E2M1(x / d)    compressed-tensors

ONNX Runtime rounds as llama.cpp does, in the blocks of the weights and with float32 scales.
OpenVINO's plugin for CPUs rounds to INT8 in blocks of 32, by the first of these rules (its dynamic quantization).
bitsandbytes rounds to INT8 per token, all columns but those in which some token has a magnitude of 6 or more.
XNNPACK's dynamic kernels (qd8) take a zero point z as well: the range from min(x, 0) to max(x, 0) has 256 steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import linear

from fewbits.export.gguf.activation_blocks import ACTIVATION_BLOCK
from fewbits.export.onnx.activation_blocks import ACTIVATION_BLOCK as ONNX_BLOCK
from fewbits.formats.compressed_tensors import INPUT_GLOBAL_SCALE, INPUT_SCALE
from fewbits.formats.graph_integer import LITERT_NAMES
from fewbits.formats.openvino import FORMATS as OPENVINO
from fewbits.formats.with_activations import W4A8
from fewbits.formats.xnnpack import NAMES as XNNPACK_NAMES
from fewbits.language_model.linear_calls import LinearCalls
from fewbits.language_model.transformers_model import storage_address


@dataclass(frozen=True)
class ActivationRounding:
    """Rounding to 8 bit in blocks, or (block 0) to a float type.

    Attributes:
        block: activations that share a scale; rows whose length it doesn't divide are left as they are.
        dtype: of the scale, or for block 0 of the activations themselves.
    """

    block: int
    dtype: torch.dtype

    def __call__(self, x: Tensor) -> Tensor:
        """The values the dot product sees: float32 [..., K] -> float32 [..., K]."""
        if not self.block:
            return x.to(self.dtype).to(torch.float32)
        if x.shape[-1] % self.block:
            return x
        blocks = x.reshape(-1, self.block)
        largest = blocks.abs().amax(dim=1, keepdim=True)
        codes = (blocks * (127.0 / largest).where(largest > 0, largest)).round_()
        scale = (largest / 127.0).to(self.dtype).to(torch.float32)
        return (codes * scale).reshape(x.shape)


@dataclass(frozen=True)
class TokenRounding:
    """Rounding with one scale for each token, or for groups of its numbers.

    Attributes:
        largest: number that the largest magnitude becomes.
        dtype: a float type for the codes, or None for integers.
        group: numbers that share a scale, a divisor of all rows' length; 0 for all of a token.
    """

    largest: float
    dtype: torch.dtype | None = None
    group: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        """The values the dot product sees: float32 [..., K] -> float32 [..., K]."""
        groups = x.reshape(-1, self.group or x.shape[-1])
        scale = groups.abs().amax(dim=-1, keepdim=True) / self.largest
        codes = groups / scale.where(scale > 0, 1.0)
        rounded = codes.round() if self.dtype is None else codes.to(self.dtype).to(torch.float32)
        return (rounded * scale).reshape(x.shape)


@dataclass(frozen=True)
class OutlierRounding:
    """Rounding with one scale for each token, but for the columns that hold outliers: LLM.int8(), arXiv 2208.07339.

    Attributes:
        threshold: magnitude from which on a number is an outlier.
    """

    threshold: float

    def __call__(self, x: Tensor) -> Tensor:
        """The values the dot product sees: float32 [..., K] -> float32 [..., K]."""
        x = x.to(torch.float16).to(torch.float32)  # bitsandbytes' kernels take this type
        beyond = x.abs() >= self.threshold
        columns = beyond.reshape(-1, x.shape[-1]).any(dim=0)
        # An outlier counts for no scale; the others of its column do.
        kept = x.masked_fill(beyond, 0.0)
        largest = kept.abs().amax(dim=-1, keepdim=True)
        # float16 numbers meet ties often enough for the order of the operations to count: this is bitsandbytes' own.
        codes = (kept * (127.0 / largest.where(largest > 0, 1.0))).round()
        return torch.where(columns, x, codes * (largest / 127.0))


@dataclass(frozen=True)
class AsymmetricTokenRounding:
    """Rounding to 8 bits with a scale and a zero point for each token.

    Source: XNNPACK's src/xnnpack/quantization.h, xnn_f32_qd8_asymmetric_quantization_params.
    """

    def __call__(self, x: Tensor) -> Tensor:
        """The values the dot product sees: float32 [..., K] -> float32 [..., K]."""
        low = x.amin(dim=-1, keepdim=True).clamp(max=0.0)
        high = x.amax(dim=-1, keepdim=True).clamp(min=0.0)
        steps = torch.where(low == high, 1.0, 255.0 / (high - low))
        below, above = low * steps, high * steps
        # The end of the range whose rounding is the worse one decides.
        zero = torch.where(-128 + below + 127 + above > 0, -128 - below, 127 - above).clamp(-128, 127).round()
        codes = (x * steps).clamp(-128 - zero, 127 - zero).round()
        return codes * (1.0 / steps)


@dataclass(frozen=True)
class StaticRounding:
    """Rounding with one scale for all tokens, saturating.

    Attributes:
        scale: what inputs are divided by.
        lowest, highest: of the codes.
        dtype: a float type for the codes, or None for integers.
    """

    scale: float
    lowest: float
    highest: float
    dtype: torch.dtype | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """The values the dot product sees: float32 [..., K] -> float32 [..., K]."""
        codes = (x / self.scale).clamp(self.lowest, self.highest)
        return (codes.round() if self.dtype is None else codes.to(self.dtype).to(torch.float32)) * self.scale


@dataclass(frozen=True)
class NVFP4Rounding:
    """E2M1 numbers with an E4M3 scale for each 16 of a token.

    Attributes:
        global_scale: what scales are multiplied with before they are rounded.
    """

    global_scale: float

    def __call__(self, x: Tensor) -> Tensor:
        """The values the dot product sees: float32 [..., K] -> float32 [..., K]."""
        groups = x.reshape(-1, 16)
        wanted = (groups.abs().amax(-1, keepdim=True) / 6.0 * self.global_scale).clamp(max=448.0)
        scale = wanted.to(torch.float8_e4m3fn).to(torch.float32)
        # A scale that rounds to 0 is taken as the type's smallest step.
        scale = scale.where(scale > 0, 0.125) / self.global_scale
        return (nearest_e2m1(groups / scale) * scale).reshape(x.shape)


def mxfp4(x: Tensor) -> Tensor:
    """E2M1 numbers with a power of two for each 32 of a token: float32 [..., K] -> float32 [..., K].

    The power is that of the largest magnitude, which is rounded up from 1.75 on, less 2.
    """
    groups = x.reshape(-1, 32)
    largest = groups.abs().amax(-1, keepdim=True).contiguous()
    power = ((largest.view(torch.int32) + (1 << 21)) & 0x7F800000).view(torch.float32)
    scale = (power / 4.0).clamp_min(2.0**-126)
    return (nearest_e2m1(groups / scale) * scale).reshape(x.shape)


_E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
# Ties go to the even code: down at the first of these, up at the second, and so on.
_BETWEEN = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
_BETWEEN[1::2] = torch.nextafter(_BETWEEN[1::2], torch.zeros(3))


def nearest_e2m1(x: Tensor) -> Tensor:
    """The nearest E2M1 number, ties to even, saturating: float32 in, float32 out."""
    return torch.copysign(_E2M1[torch.bucketize(x.abs(), _BETWEEN)], x)


Rounding: TypeAlias = Callable[[Tensor], Tensor]

Q8_0 = ActivationRounding(32, torch.float16)
Q8_K = ActivationRounding(256, torch.float32)
F16 = ActivationRounding(0, torch.float16)
BF16 = ActivationRounding(0, torch.bfloat16)

# By the type of the weight in the GGUF file. F32 weights take float32 activations.
ROUNDING: Mapping[str, ActivationRounding] = {
    **{name: Q8_K if block == 256 else Q8_0 for name, block in ACTIVATION_BLOCK.items()},
    "F16": F16,
    "BF16": BF16,
}


# By the format of the weight in a directory; with all others activations stay as they are.
TOKEN_ROUNDING: Mapping[str, Rounding] = {
    "INT8_CHANNEL_SYM": TokenRounding(127.0),
    "FP8_E4M3_CHANNEL": TokenRounding(448.0, torch.float8_e4m3fn),
    "FP8_E4M3_BLOCK": TokenRounding(448.0, torch.float8_e4m3fn, group=128),
    **dict.fromkeys(W4A8, TokenRounding(127.0)),
    "MXFP4_PACKED_A4": mxfp4,
    "MODELOPT_FP8": TokenRounding(448.0, torch.float8_e4m3fn),
    "BNB_INT8": OutlierRounding(6.0),
    **{name: ActivationRounding(block, torch.float32) for name, block in ONNX_BLOCK.items()},
    **dict.fromkeys(OPENVINO, ActivationRounding(32, torch.float32)),
    **{name: AsymmetricTokenRounding() for name in (*XNNPACK_NAMES, *LITERT_NAMES)},
}


# By the format of the weight, where the file holds a number for the inputs: its name, and the rounding it makes.
_STATIC_FP8 = partial(StaticRounding, lowest=-448.0, highest=448.0, dtype=torch.float8_e4m3fn)
FILE_ROUNDING: Mapping[str, tuple[str, Callable[[float], Rounding]]] = {
    "INT8_CHANNEL_SYM_STATIC": (INPUT_SCALE, partial(StaticRounding, lowest=-128.0, highest=127.0)),
    "FP8_E4M3_CHANNEL_STATIC": (INPUT_SCALE, _STATIC_FP8),
    "FP8_E4M3_TENSOR_STATIC": (INPUT_SCALE, _STATIC_FP8),
    "QDQ8_STATIC": (INPUT_SCALE, partial(StaticRounding, lowest=-128.0, highest=127.0)),
    "NVFP4_A4": (INPUT_GLOBAL_SCALE, NVFP4Rounding),
}


class RuntimeActivations(LinearCalls):
    """Within this context every linear map rounds its input as the runtime does for that weight.

    Weights are recognised by their storage, so the maps of tied heads and of experts, which are slices of
    a stacked parameter, are found as well.
    """

    def __init__(self, roundings: Mapping[int, Rounding]) -> None:
        super().__init__()
        self._roundings = roundings

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Of the rounded input."""
        rounding = self._roundings.get(storage_address(weight))
        return linear(x if rounding is None else rounding(x), weight, bias)
