"""Facts about ModelOpt's directories."""

from fewbits.targets import sources
from fewbits.targets.hardware import FROM_ADA, FROM_AMPERE, FROM_TURING
from fewbits.targets.target import Runtime, Scheme, Target

TARGET = Target(
    "modelopt",
    "Hugging Face directory for NVIDIA's runtimes",
    runtimes=(
        Runtime("TensorRT-LLM", "NVIDIA GPUs", sources=(sources.TENSORRT_LLM,)),
        Runtime(
            "ModelOpt's own unpacking", "any CPU; proves the numbers, not the kernels", driver="modelopt",
            row="modelopt", sources=("https://github.com/NVIDIA/Model-Optimizer",),
        ),
        Runtime(
            "vLLM", "NVIDIA GPUs", driver="vllm", row="vllm", sources=(sources.VLLM,),
        ),
    ),
    schemes=(
        Scheme(
            "W8A8 FP8", ("MODELOPT_FP8",), "NVIDIA GPUs from compute capability 8.9 (Ada)", "", (sources.MODELOPT,),
            FROM_ADA,
        ),
        Scheme(
            "W4A16 NVFP4", ("MODELOPT_NVFP4",), sources.FP4, "", (sources.MODELOPT, sources.MARLIN.source), FROM_TURING,
            sources.MARLIN,
        ),
        Scheme(
            "W4A16 integers", ("MODELOPT_INT4_G128",), "NVIDIA GPUs from compute capability 8.0 (Ampere)", "",
            (sources.MODELOPT,), FROM_AMPERE,
        ),
    ),
)  # fmt: skip
