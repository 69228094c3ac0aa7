"""How llama.cpp rounds activations on the CPU: the one place that knows it.

A quantized weight is never multiplied with float32 activations there. Each row of activations is first
rounded to the type that the weight type's dot product takes (`vec_dot_type` in ggml-cpu.c's table
`type_traits_cpu`; the repacked kernels take the same types):

    Q8_0  blocks of 32:   d = max|x| / 127, kept as float16;  q = round(x * 127 / max|x|);  value d * q
    Q8_1  as Q8_0, with the block's sum beside it
    Q8_K  blocks of 256:  as Q8_0, with d kept as float32
    F16, BF16             x rounded to that type

On small models at 8 bits this costs as much as the rounding of the weights, so an evaluation that leaves
it out is not what the user of the file will see. Left out here, being far smaller: the float16 KV cache,
and Q8_1's float16 rounding of the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

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


Q8_0 = ActivationRounding(32, torch.float16)
Q8_K = ActivationRounding(256, torch.float32)
F16 = ActivationRounding(0, torch.float16)
BF16 = ActivationRounding(0, torch.bfloat16)

# By the type of the weight in the GGUF file. F32 weights take float32 activations.
ROUNDING: Mapping[str, ActivationRounding] = {
    **dict.fromkeys(
        ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4", "NVFP4", "Q1_0", "Q2_0"), Q8_0
    ),
    **dict.fromkeys(("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "TQ1_0", "TQ2_0"), Q8_K),
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"), Q8_K),
    "F16": F16,
    "BF16": BF16,
}


class RuntimeActivations(TorchFunctionMode):
    """Within this context every linear map rounds its input as the runtime does for that weight.

    Weights are recognised by their storage, so the maps of tied heads and of experts, which are slices of
    a stacked parameter, are found as well.
    """

    def __init__(self, roundings: Mapping[int, ActivationRounding]) -> None:
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
