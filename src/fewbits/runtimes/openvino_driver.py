"""Folders with OpenVINO's graphs: logits by openvino's plugin for CPUs, generation by openvino-genai.

The plugin's own settings hold: on processors that have the instructions, products in bfloat16, and inputs of compressed
products rounded to 8 bits in blocks of 32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

REQUIREMENTS = (
    "openvino==2026.4.1",
    "openvino-tokenizers==2026.4.1.0",
    "openvino-genai==2026.4.1.0",
)
GRAPH = "openvino_model.xml"
# What the graph says, without the plugin's savings.
EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    "KV_CACHE_PRECISION": "f32",
}
_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "dynamic": "float32"}


def logits(model: str, tokens: list[int], settings: dict[str, str] | None = None) -> npt.NDArray[np.float32]:
    """float32 [T, V], with the plugin's own settings or with these changed."""
    compiled = _compiled(model, settings)
    count = len(tokens)
    inputs = {
        "input_ids": np.array([tokens], np.int64),
        "attention_mask": np.ones((1, count), np.int64),
        "position_ids": np.arange(count, dtype=np.int64)[None],
        "beam_idx": np.zeros(1, np.int32),
    }
    names = {name for port in compiled.inputs for name in port.get_names()}
    request = compiled.create_infer_request()
    request.infer({name: value for name, value in inputs.items() if name in names})
    return np.array(request.get_tensor("logits").data[0], np.float32)


def generate(model: str, tokens: list[int], count: int) -> list[int]:
    """Greedy, by openvino-genai's pipeline."""
    import openvino
    import openvino_genai

    pipeline = openvino_genai.LLMPipeline(model, "CPU")
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = count
    config.ignore_eos = True
    answer = pipeline.generate(openvino.Tensor(np.array([tokens], np.int64)), config)
    return [int(token) for token in answer.tokens[0]]


def arithmetic(model: str) -> str:
    """What the plugin multiplies in."""
    return _DTYPES[_compiled(model, None).get_property("INFERENCE_PRECISION_HINT").get_type_name()]


def _compiled(model: str, settings: dict[str, str] | None) -> Any:
    import openvino

    return openvino.Core().compile_model(f"{model}/{GRAPH}", "CPU", settings or {})
