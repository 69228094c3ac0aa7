"""Runs a folder of OpenVINO's graphs in its own environment: openvino for logits, openvino-genai to generate."""

import numpy as np

REQUIREMENTS = (
    "torch==2.13.0",
    "openvino==2026.4.1",
    "openvino-tokenizers==2026.4.1.0",
    "openvino-genai==2026.4.1.0",
    "optimum-intel==2.2.0",
    "nncf==3.4.0",
)
# Float32 throughout, inputs of compressed weights as they are: what the graph says, without a plugin's savings.
EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    "KV_CACHE_PRECISION": "f32",
}


def logits(model: str, tokens: list[int], settings: dict[str, str] | None = None) -> np.ndarray:
    """Logits of one sequence, float32 [T, V], by the plugin for CPUs with its own settings or these."""
    import openvino

    compiled = openvino.Core().compile_model(f"{model}/openvino_model.xml", "CPU", settings or {})
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
    """Greedy continuation by openvino-genai's pipeline."""
    import openvino
    import openvino_genai

    pipeline = openvino_genai.LLMPipeline(model, "CPU")
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = count
    config.ignore_eos = True
    answer = pipeline.generate(openvino.Tensor(np.array([tokens], np.int64)), config)
    return [int(token) for token in answer.tokens[0]]
