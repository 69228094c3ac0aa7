"""Folders for ONNX Runtime in onnxruntime-genai, on CPUs, as they are: activations are rounded to 8 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

REQUIREMENTS = ("onnxruntime==1.32.0", "onnxruntime-genai==0.18.0")


def logits(model: str, tokens: list[int]) -> npt.NDArray[np.float32]:
    """float32 [T, V]."""
    generator = _generator(model, tokens, 1)
    return np.asarray(generator.get_output("logits")[0], np.float32)


def generate(model: str, tokens: list[int], count: int) -> list[int]:
    """Greedy, by onnxruntime-genai's own loop; fewer where the model ends its answer."""
    generator = _generator(model, tokens, count)
    answer: list[int] = []
    while len(answer) < count and not generator.is_done():
        generator.generate_next_token()
        answer.append(int(generator.get_next_tokens()[0]))
    return answer


def _generator(model: str, tokens: list[int], more: int) -> Any:
    import onnxruntime_genai

    loaded = onnxruntime_genai.Model(model)
    parameters = onnxruntime_genai.GeneratorParams(loaded)
    parameters.set_search_options(do_sample=False, min_length=0, max_length=len(tokens) + more)
    generator = onnxruntime_genai.Generator(loaded, parameters)
    generator.append_tokens(np.array(tokens, np.int32))
    return generator
