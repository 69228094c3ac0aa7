"""Facts about bitsandbytes' directories."""

from fewbits.targets.hardware import CPUS, FROM_TURING
from fewbits.targets.target import Runtime, Scheme, Target

_INSTALLATION = "https://huggingface.co/docs/bitsandbytes/v0.50.0/installation"

TARGET = Target(
    "bitsandbytes",
    "Hugging Face directory to run and to train adapters on (QLoRA)",
    runtimes=(
        Runtime(
            "transformers with bitsandbytes", "NVIDIA, AMD and Intel GPUs, Apple silicon, Gaudi, CPUs",
            driver="transformers", row="bitsandbytes", sources=(_INSTALLATION,),
        ),
    ),
    schemes=(
        Scheme(
            "W4A16 NF4", ("NF4",),
            "NVIDIA GPUs from compute capability 6.0 (Pascal), AMD and Intel GPUs, Apple silicon, CPUs", "",
            (_INSTALLATION,), (*FROM_TURING, "amd-gpu", "intel-gpu", "apple", *CPUS),
        ),
        Scheme(
            "LLM.int8(), activations in 8 bits but for outliers", ("BNB_INT8",),
            "NVIDIA GPUs from compute capability 7.5 (Turing), CPUs", "",
            (_INSTALLATION, "https://arxiv.org/abs/2208.07339"), (*FROM_TURING, *CPUS),
        ),
    ),
    notes=("one format in a model",),
)  # fmt: skip
