"""Facts about ExecuTorch's programs."""

from fewbits.targets.hardware import CPUS
from fewbits.targets.target import Runtime, Scheme, Target

_BACKEND = "https://docs.pytorch.org/executorch/1.0/_sources/backends/xnnpack/xnnpack-quantization.md.txt"

TARGET = Target(
    "executorch",
    "program (.pte) for ExecuTorch's XNNPACK backend",
    runtimes=(
        Runtime(
            "ExecuTorch", "CPUs of phones and computers", driver="executorch", row="executorch",
            sources=("https://docs.pytorch.org/executorch/stable/backends-xnnpack.html",),
        ),
    ),
    schemes=(
        Scheme(
            "4-bit weights by group, 8-bit dynamic activations", ("XNN4_{G32|G64|G128|G256}",),
            "CPUs by XNNPACK", "embedding and head too", (_BACKEND,), CPUS,
        ),
        Scheme(
            "4 and 8 bits by row, 8-bit dynamic activations", ("XNN{4|8}_CHANNEL",), "CPUs by XNNPACK", "", (_BACKEND,),
            CPUS,
        ),
    ),
    notes=("A model without experts, of an architecture in fewbits' list, with a fixed context.",),
)  # fmt: skip
