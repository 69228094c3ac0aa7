"""GPTQ and AWQ directories in transformers, by GPTQModel's kernels."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

REQUIREMENTS = ("torch==2.13.0", "gptqmodel==7.6.0", "transformers==5.23.0", "optimum==2.3.0")


def arithmetic(model: str) -> str:
    """That of its kernels."""
    del model
    return "float16"


def logits(model: str, tokens: list[int]) -> npt.NDArray[np.float32]:
    """float32 [T, V]."""
    import torch

    with torch.no_grad():
        found = _load(model)(torch.tensor([tokens])).logits[0].float().numpy()
    return np.asarray(found, np.float32)


def generate(model: str, tokens: list[int], count: int) -> list[int]:
    """Greedy, by transformers' own loop; ends early at the end-of-text token."""
    import torch

    ids = torch.tensor([tokens])
    with torch.no_grad():
        found = _load(model).generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False
        )
    return [int(token) for token in found[0, len(tokens) :]]


@cache
def _load(model: str) -> Any:
    os.environ.setdefault(
        "GPTQMODEL_CPU_WORKERS", "2"
    )  # its pool asks for two workers, also on small machines
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float16, device_map="cpu").eval()
    kinds = {type(m).__name__ for m in loaded.modules() if hasattr(m, "qweight")}
    if not kinds:
        raise RuntimeError("no layer is one of GPTQModel's: it was loaded as a model that isn't quantized")
    return loaded
