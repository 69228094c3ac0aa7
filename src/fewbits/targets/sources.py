"""Public pages that several targets' facts come from, and what they say that several targets need."""

from fewbits.targets.hardware import FROM_TURING
from fewbits.targets.target import Kernel

VLLM = "https://docs.vllm.ai/en/v0.32.0/features/quantization/"
VLLM_TABLE = "https://docs.vllm.ai/en/v0.15.1/features/quantization/"
# The last table with AWS Neuron, and the last with TPUs.
VLLM_TABLE_NEURON = "https://docs.vllm.ai/en/v0.9.2/features/quantization/supported_hardware.html"
VLLM_TABLE_TPU = "https://docs.vllm.ai/en/v0.11.2/features/quantization/"
VLLM_FP8 = "https://docs.vllm.ai/en/v0.32.0/features/quantization/llm_compressor/fp8/"
VLLM_W4A8_ARM = "https://github.com/vllm-project/vllm/pull/33122"
VLLM_W4A8_HOPPER = "https://github.com/vllm-project/llm-compressor/issues/2693"
MODELOPT = "https://nvidia.github.io/Model-Optimizer/guides/0_support_matrix.html"
TENSORRT_LLM = "https://nvidia.github.io/TensorRT-LLM/features/quantization.html"

MARLIN = Kernel(
    "Marlin", 64, 128, FROM_TURING,
    "Marlin: rows a multiple of 64, columns of 128 and of the group, on each GPU's share of a matrix",
    "https://github.com/vllm-project/vllm/blob/007d50058a06dec0f82472d63c819244d460c40d/"
    "vllm/model_executor/layers/quantization/utils/marlin_utils.py",
)  # fmt: skip

EVERY_NVIDIA = "NVIDIA GPUs from compute capability 7.5 (Turing) by Marlin's kernels"
FP8 = "NVIDIA GPUs from compute capability 8.9 (Ada); from 7.5 the weights alone, by Marlin; AMD GPUs"
# FP4's Tensor Cores take activations in FP4 as well.
FP4 = "NVIDIA GPUs from compute capability 7.5 (Turing), unpacked by Marlin; those with FP4 (10.0, Blackwell) too"
