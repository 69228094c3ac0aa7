"""Facts about compressed-tensors' directories."""

from fewbits.targets import sources
from fewbits.targets.target import Runtime, Scheme, Target

TARGET = Target(
    "compressed-tensors",
    "Hugging Face directory for servers on GPUs and CPUs",
    runtimes=(
        Runtime(
            "transformers", "anything that PyTorch runs on; weights are unpacked", driver="transformers",
            row="compressed-tensors",
            sources=("https://huggingface.co/docs/transformers/quantization/compressed_tensors",),
        ),
        Runtime(
            "vLLM", "NVIDIA and AMD GPUs, x86 CPUs, TPUs", driver="vllm", row="vllm", sources=(sources.VLLM,),
        ),
        Runtime(
            "SGLang", "NVIDIA and AMD GPUs",
            sources=("https://docs.sglang.ai/advanced_features/quantization.html",),
        ),
    ),
    schemes=(
        Scheme(
            "W4A16 and W8A16 integers", ("INT{4|8}_G{32|64|128}_SYM",), sources.EVERY_NVIDIA + "; x86 CPUs (4 bits)",
            sources.MARLIN_LIMITS, (sources.MARLIN,),
        ),
        Scheme(
            "W4A16 integers with zero points", ("INT4_G{32|64|128}",), sources.EVERY_NVIDIA + "; x86 CPUs",
            sources.MARLIN_LIMITS, (sources.MARLIN,),
        ),
        Scheme(
            "W8A8 integers", ("INT8_CHANNEL_SYM",),
            "NVIDIA GPUs from compute capability 7.5 to 9.0 (Turing to Hopper), x86 CPUs, TPUs", "",
            (sources.VLLM_TABLE, "https://docs.vllm.ai/en/v0.11.2/features/quantization/"),
        ),
        Scheme("W8A8 FP8", ("FP8_E4M3_CHANNEL",), sources.FP8, "", (sources.VLLM_FP8,)),
        Scheme(
            "W8A8 FP8 in blocks of 128 x 128", ("FP8_E4M3_BLOCK",), sources.FP8,
            "rows of a multiple of 128, and of matrices computed as one as many rows, but for the last",
            (sources.VLLM_FP8, "https://arxiv.org/abs/2412.19437"),
        ),
        Scheme("W4A16 NVFP4", ("NVFP4",), sources.FP4, "", (sources.MODELOPT, sources.MARLIN)),
        Scheme("W4A16 MXFP4", ("MXFP4_PACKED",), sources.FP4, "", (sources.MODELOPT, sources.MARLIN)),
        Scheme(
            "W8A8 integers, static activations", ("INT8_CHANNEL_SYM_STATIC",),
            "as with dynamic activations; tried in transformers alone", "", (sources.VLLM_TABLE,),
        ),
        Scheme(
            "W8A8 FP8, static activations", ("FP8_E4M3_{CHANNEL|TENSOR}_STATIC",),
            "as with dynamic activations; tried in transformers alone", "", (sources.VLLM_FP8,),
        ),
        Scheme(
            "W4A8 integers", ("INT4_{G32|G64|G128|CHANNEL}_SYM_A8",), "transformers; others were not tried", "",
            ("https://huggingface.co/docs/transformers/quantization/compressed_tensors",),
        ),
        Scheme(
            "W4A4 NVFP4 and MXFP4", ("NVFP4_A4", "MXFP4_PACKED_A4"),
            "NVIDIA GPUs with FP4 (10.0, Blackwell); tried in transformers alone", "", (sources.MODELOPT,),
        ),
        Scheme(
            "other integers", ("INT{2..8}_{G16|G32|G64|G128|CHANNEL}[_SYM]",),
            "transformers alone, which unpacks them", "", (sources.MARLIN,),
        ),
    ),
)  # fmt: skip
