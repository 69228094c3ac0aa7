"""Facts about compressed-tensors' directories."""

from fewbits.targets import sources
from fewbits.targets.hardware import FROM_TURING, TURING_TO_HOPPER
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
            "W4A16 integers", ("INT4_G{32|64|128}_SYM",), sources.EVERY_NVIDIA + "; x86 CPUs", "",
            (sources.MARLIN.source, sources.VLLM_TABLE), (*FROM_TURING, "x86-cpu"), sources.MARLIN,
        ),
        Scheme(
            "W8A16 integers", ("INT8_G{32|64|128}_SYM",), sources.EVERY_NVIDIA, "", (sources.MARLIN.source,),
            FROM_TURING, sources.MARLIN,
        ),
        Scheme(
            "W4A16 integers with zero points", ("INT4_G{32|64|128}",), sources.EVERY_NVIDIA + "; x86 CPUs", "",
            (sources.MARLIN.source, sources.VLLM_TABLE), (*FROM_TURING, "x86-cpu"), sources.MARLIN,
        ),
        Scheme(
            "W8A8 integers", ("INT8_CHANNEL_SYM",),
            "NVIDIA GPUs from compute capability 7.5 to 9.0 (Turing to Hopper), x86 CPUs, TPUs, AWS Neuron", "",
            (sources.VLLM_TABLE, sources.VLLM_TABLE_TPU, sources.VLLM_TABLE_NEURON),
            (*TURING_TO_HOPPER, "x86-cpu", "tpu", "aws-neuron"),
        ),
        Scheme(
            "W8A8 FP8", ("FP8_E4M3_CHANNEL",), sources.FP8 + ", AWS Neuron; x86 CPUs in vLLM 0.32, which was tried", "",
            (sources.VLLM_FP8, sources.VLLM_TABLE_NEURON), (*FROM_TURING, "amd-gpu", "aws-neuron", "x86-cpu"),
        ),
        Scheme(
            "W8A8 FP8 in blocks of 128 x 128", ("FP8_E4M3_BLOCK",), sources.FP8,
            "rows of a multiple of 128, and of matrices computed as one as many rows, but for the last",
            (sources.VLLM_FP8, "https://arxiv.org/abs/2412.19437"), (*FROM_TURING, "amd-gpu"),
        ),
        Scheme(
            "W4A16 NVFP4", ("NVFP4",), sources.FP4, "", (sources.MODELOPT, sources.MARLIN.source), FROM_TURING,
            sources.MARLIN,
        ),
        Scheme(
            "W4A16 MXFP4", ("MXFP4_PACKED",), sources.FP4, "", (sources.MODELOPT, sources.MARLIN.source), FROM_TURING,
            sources.MARLIN,
        ),
        Scheme(
            "W8A8 integers, static activations", ("INT8_CHANNEL_SYM_STATIC",),
            "NVIDIA GPUs from Turing to Hopper, x86 CPUs; tried in transformers alone", "", (sources.VLLM_TABLE,),
            (*TURING_TO_HOPPER, "x86-cpu"),
        ),
        Scheme(
            "W8A8 FP8, static activations", ("FP8_E4M3_{CHANNEL|TENSOR}_STATIC",),
            sources.FP8 + "; tried in transformers alone", "", (sources.VLLM_FP8,), (*FROM_TURING, "amd-gpu"),
        ),
        Scheme(
            "W4A8 integers", ("INT4_{G32|G64|G128|CHANNEL}_SYM_A8",),
            "Arm CPUs in vLLM, which was not tried; on NVIDIA GPUs it has no kernel; transformers", "",
            (sources.VLLM_W4A8_ARM, sources.VLLM_W4A8_HOPPER), ("arm-cpu",),
        ),
        Scheme(
            "W4A4 NVFP4 and MXFP4", ("NVFP4_A4", "MXFP4_PACKED_A4"),
            "NVIDIA GPUs with FP4 (10.0, Blackwell); tried in transformers alone", "", (sources.MODELOPT,),
            ("blackwell",),
        ),
        Scheme(
            "other integers", ("INT{2..8}_{G16|G32|G64|G128|CHANNEL}[_SYM]",),
            "transformers alone, which unpacks them", "",
            ("https://huggingface.co/docs/transformers/quantization/compressed_tensors",),
        ),
    ),
)  # fmt: skip
