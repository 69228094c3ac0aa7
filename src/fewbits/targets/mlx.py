"""Facts about MLX's directories."""

from fewbits.targets.hardware import CPUS, FROM_TURING
from fewbits.targets.target import Runtime, Scheme, Target

_QUANTIZE = "https://ml-explore.github.io/mlx/build/html/python/_autosummary/mlx.core.quantize.html"
_DEVICES = ("apple", *FROM_TURING, *CPUS)

TARGET = Target(
    "mlx",
    "Hugging Face directory for Apple silicon",
    runtimes=(
        Runtime(
            "mlx-lm", "Apple silicon; CPUs and NVIDIA GPUs by MLX's builds for Linux", driver="mlx-lm", row="mlx",
            sources=("https://github.com/ml-explore/mlx-lm",),
        ),
    ),
    schemes=(
        Scheme(
            "affine integers", ("MLX{2|3|4|5|6|8}_G{32|64|128}[_F16]",), "every device of MLX",
            "embedding and head too; any mixture", (_QUANTIZE,), _DEVICES,
        ),
        Scheme("MXFP4", ("MLX_MXFP4",), "every device of MLX", "", (_QUANTIZE,), _DEVICES),
    ),
)  # fmt: skip
