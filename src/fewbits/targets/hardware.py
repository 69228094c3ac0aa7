"""What `--hardware` names: kinds of processors between which runtimes' kernels differ, as data."""

from __future__ import annotations

from dataclasses import dataclass

_CUDA = "https://developer.nvidia.com/cuda-gpus"


@dataclass(frozen=True)
class Hardware:
    """A kind of processor.

    Attributes:
        name: what ``--hardware`` calls it.
        title: what it is, in a few words.
        source: a public page about it.
    """

    name: str
    title: str
    source: str


HARDWARE = {
    hardware.name: hardware
    for hardware in (
        Hardware("turing", "NVIDIA GPUs of compute capability 7.5, such as T4", _CUDA),
        Hardware("ampere", "NVIDIA GPUs of compute capability 8.0 to 8.7, such as A100 and RTX 3090", _CUDA),
        Hardware("ada", "NVIDIA GPUs of compute capability 8.9, such as L40S and RTX 4090", _CUDA),
        Hardware("hopper", "NVIDIA GPUs of compute capability 9.0, such as H100 and H200", _CUDA),
        Hardware("blackwell", "NVIDIA GPUs of compute capability 10.0 to 12.1, such as B200 and RTX 5090", _CUDA),
        Hardware("amd-gpu", "AMD GPUs by ROCm", "https://rocm.docs.amd.com/en/latest/"),
        Hardware(
            "intel-gpu", "Intel GPUs", "https://docs.vllm.ai/en/v0.11.2/features/quantization/",
        ),
        Hardware(
            "intel-npu", "NPUs of Intel's Core Ultra processors",
            "https://docs.openvino.ai/2024/learn-openvino/llm_inference_guide/genai-guide-npu.html",
        ),
        Hardware("apple", "Apple silicon", "https://ml-explore.github.io/mlx/build/html/install.html"),
        Hardware("x86-cpu", "processors of x86-64", "https://gitlab.com/x86-psABIs/x86-64-ABI"),
        Hardware("arm-cpu", "processors of AArch64, of servers and phones", "https://developer.arm.com/documentation/102374"),
        Hardware("tpu", "Google's TPUs", "https://cloud.google.com/tpu/docs"),
        Hardware(
            "aws-neuron", "AWS's Inferentia and Trainium", "https://awsdocs-neuron.readthedocs-hosted.com/en/latest/"
        ),
    )
}  # fmt: skip

# By the generation from which on kernels take a scheme.
FROM_TURING = ("turing", "ampere", "ada", "hopper", "blackwell")
FROM_AMPERE = FROM_TURING[1:]
FROM_ADA = FROM_TURING[2:]
TURING_TO_HOPPER = FROM_TURING[:-1]
CPUS = ("x86-cpu", "arm-cpu")
EVERYTHING = tuple(HARDWARE)
