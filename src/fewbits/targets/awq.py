"""Facts about AWQ's directories."""

from fewbits.targets import sources
from fewbits.targets.gptq import kernels
from fewbits.targets.hardware import FROM_TURING
from fewbits.targets.target import Scheme, Target

TARGET = Target(
    "awq",
    "Hugging Face directory for AWQ's kernels",
    runtimes=kernels("awq"),
    schemes=(
        Scheme(
            "W4A16 integers with zero points", ("AWQ4_G{32|64|128}",),
            sources.EVERY_NVIDIA + "; x86 CPUs, Intel GPUs", "", (sources.MARLIN.source, sources.VLLM_TABLE),
            (*FROM_TURING, "x86-cpu", "intel-gpu"), sources.MARLIN,
        ),
    ),
    notes=("one format in a model",),
)  # fmt: skip
