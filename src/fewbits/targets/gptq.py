"""Facts about GPTQ's directories."""

from fewbits.targets import sources
from fewbits.targets.hardware import FROM_TURING
from fewbits.targets.target import Runtime, Scheme, Target

GPTQMODEL = "https://github.com/ModelCloud/GPTQModel"


def kernels(row: str) -> tuple[Runtime, ...]:
    """What runs GPTQ's and AWQ's directories alike; `row` of tests_runtimes/ proves it with GPTQModel."""
    return (
        Runtime(
            "transformers with GPTQModel", "NVIDIA, AMD and Intel GPUs, CPUs", driver="gptqmodel", row=row,
            sources=(GPTQMODEL,),
        ),
        Runtime(
            "vLLM", "NVIDIA and Intel GPUs, x86 CPUs", driver="vllm", row="vllm", sources=(sources.VLLM_TABLE,),
        ),
        Runtime("SGLang", "NVIDIA GPUs", sources=("https://docs.sglang.ai/advanced_features/quantization.html",)),
    )  # fmt: skip


TARGET = Target(
    "gptq",
    "Hugging Face directory for GPTQ's kernels",
    runtimes=kernels("gptq"),
    schemes=(
        Scheme(
            "W4A16 and W8A16 integers", ("GPTQ{4|8}_{G32|G64|G128|CHANNEL}_SYM",),
            sources.EVERY_NVIDIA + "; x86 CPUs, Intel GPUs", "", (sources.MARLIN.source, sources.VLLM_TABLE),
            (*FROM_TURING, "x86-cpu", "intel-gpu"), sources.MARLIN,
        ),
        Scheme(
            "2 and 3 bits, and zero points", ("GPTQ{2|3}_…", "GPTQ{2|3|4|8}_… without _SYM"),
            "transformers with GPTQModel; vLLM by its older kernels where it has them",
            "gptq_v2 for formats without _SYM", (GPTQMODEL,), (*FROM_TURING, "amd-gpu", "intel-gpu", "x86-cpu"),
        ),
    ),
    notes=("formats with and without _SYM don't mix in one model",),
)  # fmt: skip
