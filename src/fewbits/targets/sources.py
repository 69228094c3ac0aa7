"""Public pages that several targets' facts come from."""

VLLM = "https://docs.vllm.ai/en/v0.32.0/features/quantization/"
VLLM_TABLE = "https://docs.vllm.ai/en/v0.15.1/features/quantization/"
VLLM_FP8 = "https://docs.vllm.ai/en/v0.32.0/features/quantization/llm_compressor/fp8/"
MARLIN = (
    "https://github.com/vllm-project/vllm/blob/007d50058a06dec0f82472d63c819244d460c40d/"
    "vllm/model_executor/layers/quantization/utils/marlin_utils.py"
)
MODELOPT = "https://nvidia.github.io/Model-Optimizer/guides/0_support_matrix.html"
TENSORRT_LLM = "https://nvidia.github.io/TensorRT-LLM/features/quantization.html"

MARLIN_LIMITS = (
    "Marlin: rows a multiple of 64, columns of 128 and of the group, on each GPU's share of a matrix"
)
EVERY_NVIDIA = "NVIDIA GPUs from compute capability 7.5 (Turing) by Marlin's kernels"
FP8 = "NVIDIA GPUs from compute capability 8.9 (Ada); from 7.5 the weights alone, by Marlin; AMD GPUs"
# FP4's Tensor Cores take activations in FP4 as well.
FP4 = "NVIDIA GPUs from compute capability 7.5 (Turing), unpacked by Marlin; those with FP4 (10.0, Blackwell) too"
