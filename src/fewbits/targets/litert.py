"""Facts about LiteRT's models."""

from fewbits.targets.hardware import CPUS
from fewbits.targets.target import Runtime, Scheme, Target

_SPECIFICATION = "https://ai.google.dev/edge/litert/models/quantization_spec"

TARGET = Target(
    "litert",
    "LiteRT model (.tflite)",
    runtimes=(
        Runtime(
            "LiteRT", "phones and computers; tried on a CPU", driver="litert", row="litert",
            sources=("https://ai.google.dev/edge/litert",),
        ),
    ),
    schemes=(
        Scheme("4-bit weights by group", ("LITERT4_{G32|G64|G128}",), "CPUs by XNNPACK", "", (_SPECIFICATION,), CPUS),
        Scheme("4 and 8 bits by row", ("LITERT{4|8}_CHANNEL",), "CPUs by XNNPACK", "", (_SPECIFICATION,), CPUS),
    ),
)  # fmt: skip
