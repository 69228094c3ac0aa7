"""Whether the models fit: asked before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path

from fewbits.checkpoint.checkpoint import Checkpoint
from fewbits.errors import EvaluationError

# Activations, logits of the positions at hand and the interpreter with PyTorch.
_OVERHEAD = 600_000_000


def available_memory(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes that can be used without swapping, or None where the system doesn't say."""
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return None
    # MemAvailable:   23456789 kB
    kilobytes = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(kilobytes[0]) if kilobytes else None


def float32_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of all parameters of a model in float32."""
    return 4 * sum(prod(tensor.shape) for tensor in checkpoint.tensors.values())


def require_memory(checkpoints: Sequence[Checkpoint], available: int | None) -> None:
    """Refuse models that don't fit in memory together.

    Raises:
        EvaluationError: with what is needed and what is available.
    """
    sizes = [float32_bytes(checkpoint) for checkpoint in checkpoints]
    needed = sum(sizes) + _OVERHEAD
    if available is None or needed <= available:
        return
    parts = " + ".join(
        f"{checkpoint.path.name} {size / 1e9:.1f} GB"
        for checkpoint, size in zip(checkpoints, sizes, strict=True)
    )
    raise EvaluationError(
        "not enough memory to run the model" + "s side by side" * (len(sizes) > 1) + " in float32",
        found=f"{available / 1e9:.1f} GB available",
        allowed=f"at least {needed / 1e9:.1f} GB ({parts}, {_OVERHEAD / 1e9:.1f} GB besides)",
        action="Close other programs, or run this on a larger machine",
    )
