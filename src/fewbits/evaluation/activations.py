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

bitsandbytes rounds to INT8 likewise, all columns but those in which some token has a magnitude of 6 or more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fewbits.export.gguf.activation_blocks import ACTIVATION_BLOCK
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
    """Rounding with one scale for each token.

    Attributes:
        largest: number that a token's largest magnitude becomes.
        dtype: a float type for the codes, or None for integers.
    """

    largest: float
    dtype: torch.dtype | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """The values the dot product sees: float32 [..., K] -> float32 [..., K]."""
        scale = x.abs().amax(dim=-1, keepdim=True) / self.largest
        codes = x / scale.where(scale > 0, 1.0)
        return (codes.round() if self.dtype is None else codes.to(self.dtype).to(torch.float32)) * scale


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
        return torch.where(columns, x, TokenRounding(127.0)(x.masked_fill(beyond, 0.0)))


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
    "MODELOPT_FP8": TokenRounding(448.0, torch.float8_e4m3fn),
    "BNB_INT8": OutlierRounding(6.0),
}


class RuntimeActivations(TorchFunctionMode):
    """Within this context every linear map rounds its input as the runtime does for that weight.

    Weights are recognised by their storage, so the maps of tied heads and of experts, which are slices of
    a stacked parameter, are found as well.
    """

    def __init__(self, roundings: Mapping[int, Rounding]) -> None:
        super().__init__()
        self._roundings = roundings

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Called by PyTorch for every function of tensors."""
        del types
        if func is torch.nn.functional.linear and len(args) > 1:
            rounding = self._roundings.get(storage_address(args[1]))
            if rounding is not None:
                args = (rounding(args[0]), *args[1:])
        return func(*args, **(kwargs or {}))
