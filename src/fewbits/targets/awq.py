"""Facts about AWQ's directories."""

from fewbits.targets import sources
from fewbits.targets.gptq import GPTQMODEL
from fewbits.targets.target import Runtime, Scheme, Target

TARGET = Target(
    "awq",
    "Hugging Face directory for AWQ's kernels",
    runtimes=(
        Runtime(
            "transformers with GPTQModel", "NVIDIA, AMD and Intel GPUs, CPUs", driver="gptqmodel", row="awq",
            sources=(GPTQMODEL,),
        ),
        Runtime(
            "vLLM", "NVIDIA and Intel GPUs, x86 CPUs", driver="vllm", row="vllm", sources=(sources.VLLM_TABLE,),
        ),
        Runtime("SGLang", "NVIDIA GPUs", sources=("https://docs.sglang.ai/advanced_features/quantization.html",)),
    ),
    schemes=(
        Scheme(
            "W4A16 integers with zero points", ("AWQ4_G{32|64|128}",),
            sources.EVERY_NVIDIA + "; x86 CPUs, Intel GPUs", sources.MARLIN_LIMITS,
            (sources.MARLIN, sources.VLLM_TABLE),
        ),
    ),
    notes=("one format in a model",),
)  # fmt: skip
