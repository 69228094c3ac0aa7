"""The graph of a folder for ONNX Runtime, in onnxruntime on CPUs, with activations in float32.

Products are asked for in full accuracy, so that what is compared are the numbers in the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

REQUIREMENTS = ("onnx==1.23.2", "onnxruntime==1.32.0")
# MatMulNBits' accuracy_level that leaves activations in float32.
_FLOAT32 = 1


def logits(model: str, tokens: list[int]) -> npt.NDArray[np.float32]:
    """float32 [T, V]."""
    folder = Path(model)
    session = _session(folder)
    decoder = json.loads((folder / "genai_config.json").read_bytes())["model"]["decoder"]
    past = np.zeros((1, decoder["num_key_value_heads"], 0, decoder["head_size"]), np.float32)
    known = {
        "input_ids": np.array([tokens], np.int64),
        "attention_mask": np.ones((1, len(tokens)), np.int64),
        "position_ids": np.arange(len(tokens), dtype=np.int64)[None],
    }
    feeds = {entry.name: known.get(entry.name, past) for entry in session.get_inputs()}
    return np.asarray(session.run(["logits"], feeds)[0][0], np.float32)


def rounds_activations(model: str) -> bool:
    """Where the graph itself does: MatMulNBits is told not to."""
    return any("QuantizeLinear" in node.op_type for node in _graph(Path(model)).graph.node)


def _graph(folder: Path) -> Any:
    import onnx

    return onnx.load_model(str(folder / "model.onnx"), load_external_data=False)


def _session(folder: Path) -> Any:
    import onnxruntime

    graph = _graph(folder)
    products = [node for node in graph.graph.node if node.op_type == "MatMulNBits"]
    for attribute in (a for node in products for a in node.attribute if a.name == "accuracy_level"):
        attribute.i = _FLOAT32
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(_FLOAT32))
    return onnxruntime.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
