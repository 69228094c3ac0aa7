"""Folders with a .pte file in ExecuTorch, on this machine's CPU.

Its program gives the logits of the last token only, as on phones, so a sequence goes in token by token.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

REQUIREMENTS = ("torch==2.13.0", "executorch==1.5.1", "torchao==0.18.0", "transformers==5.23.0")
_PROGRAM = "model.pte"


def logits(model: str, tokens: list[int]) -> npt.NDArray[np.float32]:
    """float32 [T, V]."""
    forward = _load(model)
    return np.stack([_step(forward, [token], position) for position, token in enumerate(tokens)])


def generate(model: str, tokens: list[int], count: int) -> list[int]:
    """Greedy: the prompt in one call, then token by token, as ExecuTorch's runners do it."""
    forward = _load(model)
    found = [int(_step(forward, tokens, 0).argmax())]
    while len(found) < count:
        found.append(int(_step(forward, found[-1:], len(tokens) + len(found) - 1).argmax()))
    return found[:count]


def arithmetic(model: str) -> str:
    """What activations are, besides the 8 bits in which each token goes into a quantized matrix."""
    del model
    return "float32"


def _step(forward: Any, tokens: list[int], position: int) -> npt.NDArray[np.float32]:
    """Logits after some tokens, of which `position` went before: float32 [V]."""
    import torch

    (found,) = forward.execute((torch.tensor([tokens]), torch.tensor([position])))
    return np.asarray(found.numpy().reshape(-1), np.float32).copy()


@cache
def _load(model: str) -> Any:
    import executorch.kernels.quantized  # noqa: F401  its operators look up embeddings
    from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  and its operators for attention
    from executorch.runtime import Runtime

    file = Path(model) / _PROGRAM
    if b"XnnpackBackend" not in file.read_bytes():
        raise RuntimeError("no part of the program is XNNPACK's")
    return Runtime.get().load_program(file).load_method("forward")
