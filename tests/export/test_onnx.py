"""Folders for ONNX Runtime: onnxruntime and onnxruntime-genai compute what our dequantized weights give."""

import json

import numpy as np
import pytest
import torch
import transformers

import fewbits
from fewbits.checkpoint.source import open_checkpoint

ort = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
genai = pytest.importorskip("onnxruntime_genai")
pytestmark = pytest.mark.filterwarnings("ignore")

TOKENS = list(range(3, 43))


def runtime_logits(folder, accuracy_level, target):
    """Logits [T, V] of onnxruntime with another accuracy level; the graph is written beside the data."""
    model = onnx.load_model(str(folder / "model.onnx"), load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = accuracy_level
    path = folder / target
    path.write_bytes(model.SerializeToString())
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    path.unlink()
    feeds = {"input_ids": np.array([TOKENS]), "attention_mask": np.ones((1, len(TOKENS)), np.int64)}
    decoder = json.loads((folder / "genai_config.json").read_bytes())["model"]["decoder"]
    past = np.zeros((1, decoder["num_key_value_heads"], 0, decoder["head_size"]), np.float32)
    for entry in session.get_inputs():
        if entry.name.startswith("past"):
            feeds[entry.name] = past
        elif entry.name == "position_ids":
            feeds[entry.name] = np.arange(len(TOKENS))[None]
    return session.run(["logits"], feeds)[0][0]


def our_logits(folder, source):
    """transformers' model with the weights that we read from the folder."""
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    tensors = open_checkpoint(folder).tensors
    state = model.state_dict()
    for name, tensor in tensors.items():
        state[name].copy_(torch.from_numpy(tensor.read()))
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0].numpy()


@pytest.mark.parametrize("name", ["NBITS4_G32", "NBITS4_G64_SYM", "NBITS8_G128", "BF16"])
def test_onnxruntime_computes_our_dequantized_weights(name, tiny_llama, tmp_path):
    folder = tmp_path / "model"
    fewbits.quantize(tiny_llama, folder, to="onnx", format=name)

    ours = our_logits(folder, tiny_llama)
    exact = runtime_logits(folder, 1, "exact.onnx")
    rounded = runtime_logits(folder, 4, "rounded.onnx")

    assert np.abs(exact - ours).max() < 1e-4 * ours.std()
    assert np.abs(rounded - ours).max() < 0.15 * ours.std()
    assert {t.dtype for n, t in open_checkpoint(folder).tensors.items() if len(t.shape) == 2} == {name}


def test_onnxruntime_genai_generates_what_its_logits_say(tiny_llama, tmp_path):
    folder = tmp_path / "model"
    fewbits.quantize(tiny_llama, folder, to="onnx", format="NBITS4_G32")

    model = genai.Model(str(folder))
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=len(TOKENS) + 4, do_sample=False)
    generator = genai.Generator(model, params)
    generator.append_tokens(TOKENS)
    logits = generator.get_output("logits")[0]
    generator.generate_next_token()

    expected = runtime_logits(folder, 4, "again.onnx")
    assert np.abs(logits[-1] - expected[-1]).max() < 1e-3 * expected.std()
    assert generator.get_next_tokens()[0] == expected[-1].argmax()
    assert json.loads((folder / "genai_config.json").read_bytes())["model"]["type"] == "llama"
