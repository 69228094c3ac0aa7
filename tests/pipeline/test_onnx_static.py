"""Static 8-bit activations in ONNX Runtime: products of integers, and the numbers that `evaluate` computes."""

import json

import numpy as np
import pytest

import fewbits
from fewbits.checkpoint.source import open_checkpoint
from fewbits.errors import PlanError
from fewbits.evaluation.activations import TOKEN_ROUNDING
from fewbits.evaluation.language_model import load_language_model

ort = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime_genai")
pytestmark = pytest.mark.filterwarnings("ignore")

NAME = "QDQ8_STATIC"
TOKENS = list(range(3, 43))


@pytest.fixture(scope="module")
def made(tiny_llama, sample_text, few_tokens, tmp_path_factory):
    del few_tokens  # for what it sets
    output = tmp_path_factory.mktemp("made") / "out"
    options = {"effort": "balanced", "algorithm": "imatrix", "calibration": sample_text, "threads": 2}
    fewbits.quantize(tiny_llama, output, to="onnx", format=NAME, **options)
    return output


def runtime_logits(folder, level, optimized=None):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = level
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    decoder = json.loads((folder / "genai_config.json").read_bytes())["model"]["decoder"]
    known = {
        "input_ids": np.array([TOKENS]),
        "attention_mask": np.ones((1, len(TOKENS)), np.int64),
        "position_ids": np.arange(len(TOKENS))[None],
    }
    past = np.zeros((1, decoder["num_key_value_heads"], 0, decoder["head_size"]), np.float32)
    feeds = {entry.name: known.get(entry.name, past) for entry in session.get_inputs()}
    return session.run(["logits"], feeds)[0][0]


def our_logits(folder, activations):
    model = load_language_model(open_checkpoint(folder), activations)
    return np.concatenate(list(model.logits(TOKENS, 0)))


def off(one, other):
    return float(np.sqrt(np.square(one - other).mean()))


def test_the_graph_says_what_evaluate_computes(made, monkeypatch):
    monkeypatch.delitem(TOKEN_ROUNDING, "QDQ8")  # as the graph is written, the head's inputs aren't rounded
    theirs = runtime_logits(made, ort.GraphOptimizationLevel.ORT_DISABLE_ALL)

    assert off(our_logits(made, "runtime"), theirs) < 0.02 * off(our_logits(made, "float"), theirs)


def test_integers_are_multiplied_with_integers(made, tmp_path):
    level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    theirs = runtime_logits(made, level, tmp_path / "optimized.onnx")

    graph = onnx.load_model(str(tmp_path / "optimized.onnx"), load_external_data=False).graph
    operators = [node.op_type for node in graph.node]
    assert sum(op in ("MatMulIntegerToFloat", "QLinearMatMul") for op in operators) == 3 * 5
    assert operators.count("MatMul") + operators.count("MatMulNBits") == 1  # the head
    # Processors without VNNI add pairs of products in 16 bits, so that the distance is theirs.
    assert off(our_logits(made, "runtime"), theirs) < 0.2 * off(our_logits(made, "float"), theirs)


def test_maps_with_the_same_inputs_have_one_scale_which_is_read_back(made):
    tensors = open_checkpoint(made).tensors
    scales = {n: t.inputs["input_scale"] for n, t in tensors.items() if t.dtype == NAME}

    assert len(scales) == 3 * 7
    assert tensors["model.embed_tokens.weight"].dtype == "QDQ8"
    assert len({scales[f"model.layers.1.self_attn.{m}_proj.weight"] for m in "qkv"}) == 1
    assert len({scales[f"model.layers.1.mlp.{m}_proj.weight"] for m in ("gate", "up")}) == 1
    assert len(set(scales.values())) > 2


def test_static_scales_need_calibration(tiny_llama, tmp_path):
    with pytest.raises(PlanError, match="which calibration finds"):
        fewbits.quantize(tiny_llama, tmp_path / "out", to="onnx", format=NAME)
    assert not list(tmp_path.iterdir())
