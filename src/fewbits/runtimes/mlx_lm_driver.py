"""MLX directories in mlx-lm; its build for CPUs outside of Apple silicon.

Scales and everything else that isn't a code become float32, so that what is compared are the numbers in the file.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

REQUIREMENTS = ("mlx[cpu]==0.32.4", "mlx-lm==0.32.2")


def logits(model: str, tokens: list[int]) -> npt.NDArray[np.float32]:
    """float32 [T, V]."""
    import mlx.core as mx

    return np.asarray(np.array(_load(model)[0](mx.array([tokens])))[0], np.float32)


def generate(model: str, tokens: list[int], count: int) -> list[int]:
    """Greedy, by mlx-lm's own loop."""
    from mlx_lm import stream_generate

    return [int(r.token) for r in stream_generate(*_load(model), tokens, max_tokens=count)]


@cache
def _load(model: str) -> tuple[Any, Any]:
    import mlx.core as mx
    import mlx.nn as nn
    from mlx_lm import load

    loaded, tokenizer = load(model)[:2]
    kinds = (nn.QuantizedLinear, nn.QuantizedEmbedding)
    if not any(isinstance(module, kinds) for module in loaded.modules()):
        raise RuntimeError("no layer is quantized: mlx-lm loaded it as a model that isn't")
    loaded.set_dtype(mx.float32)
    return loaded, tokenizer
