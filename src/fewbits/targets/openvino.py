"""Facts about OpenVINO's folders."""

from fewbits.targets.hardware import CPUS
from fewbits.targets.target import Runtime, Scheme, Target

_WEIGHTS = "https://docs.openvino.ai/2024/openvino-workflow/model-optimization-guide/weight-compression.html"
_NPU = "https://docs.openvino.ai/2024/learn-openvino/llm_inference_guide/genai-guide-npu.html"

TARGET = Target(
    "openvino",
    "OpenVINO's graph (IR) for openvino-genai",
    runtimes=(
        Runtime(
            "OpenVINO", "Intel's CPUs; its plugins for GPUs and NPUs were not tried", driver="openvino", row="openvino",
            sources=("https://github.com/openvinotoolkit/openvino.genai",),
        ),
    ),
    schemes=(
        Scheme(
            "weights of 4 and 8 bits", ("OV{4|8}_{G32|G64|G128|CHANNEL}[_SYM]",), "CPUs; GPUs",
            "any mixture; with VNNI activations are rounded to 8 bits", (_WEIGHTS,), ("intel-gpu", *CPUS),
        ),
        Scheme(
            "weights for NPUs", ("OV4_{G128|CHANNEL}_SYM", "OV8_CHANNEL_SYM"), "NPUs", "", (_NPU,), ("intel-npu",),
        ),
    ),
    notes=("Architectures are those that optimum-intel exports; mixtures of experts are refused.",),
)  # fmt: skip
