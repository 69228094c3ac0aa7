"""Folders for ONNX Runtime: onnxruntime and onnxruntime-genai compute what our dequantized weights give."""

import importlib.util
import json
from dataclasses import replace
from importlib import metadata

import numpy as np
import pytest
import torch
import transformers

import fewbits
import tiny_models
from fewbits.checkpoint.packed import PackedTensor
from fewbits.checkpoint.source import open_checkpoint
from fewbits.errors import ArchitectureError, CheckpointError, ExportError, MissingExtraError
from fewbits.evaluation.activations import TOKEN_ROUNDING
from model_files import write_tokenizer

ort = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
genai = pytest.importorskip("onnxruntime_genai")
pytestmark = pytest.mark.filterwarnings("ignore")

TOKENS = list(range(3, 43))
MIXTURE = {
    "model.embed_tokens.weight": "NBITS8_G128",
    "model.layers.0.self_attn.o_proj.weight": "NBITS4_G32_SYM",
    "model.layers.0.mlp.gate_proj.weight": "NBITS4_G64",
    "model.layers.0.mlp.down_proj.weight": "NBITS8_G16_SYM",
    "model.layers.1.self_attn.q_proj.weight": "NBITS8_G64",
    "model.layers.1.self_attn.k_proj.weight": "NBITS8_G64",
    "model.layers.1.self_attn.v_proj.weight": "NBITS8_G64",
    "model.layers.1.mlp.up_proj.weight": "QDQ8",
    "model.layers.2.mlp.down_proj.weight": "BF16",
}


@pytest.fixture(scope="module")
def mixture(tiny_llama, tmp_path_factory):
    """A folder with a format of every kind."""
    folder = tmp_path_factory.mktemp("onnx")
    plan = json.loads(fewbits.plan(tiny_llama, to="onnx", format="NBITS4_G128").to_json())
    plan["tensors"] |= MIXTURE
    (folder / "plan.json").write_text(json.dumps(plan))
    fewbits.quantize(tiny_llama, folder / "model", to="onnx", plan=folder / "plan.json")
    return folder / "model"


def session_of(folder, model, accuracy_level):
    """A session for a changed graph."""
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = accuracy_level
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(accuracy_level))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def runtime_logits(folder, accuracy_level):
    """Logits [T, V] of onnxruntime with another accuracy level."""
    model = onnx.load_model(str(folder / "model.onnx"), load_external_data=False)
    session = session_of(folder, model, accuracy_level)
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


def generator_of(folder):
    """onnxruntime-genai's generator, the tokens read."""
    model = genai.Model(str(folder))
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=len(TOKENS) + 4, do_sample=False)
    generator = genai.Generator(model, params)
    generator.append_tokens(TOKENS)
    return generator


def saved(kind, folder, **changes):
    """A tiny random model of this architecture, and where its quantized one goes."""
    tiny = tiny_models.TINY_MODELS[kind]
    tiny_models.save(replace(tiny, config={**tiny.config, **changes}), folder / "source")
    write_tokenizer(folder / "source", tiny_models.VOCABULARY)
    return folder / "source", folder / "model"


def products(folder):
    """Name of each initializer with codes -> a graph of its product alone, [M, K] named x to [M, N] named y."""
    model = onnx.load_model(str(folder / "model.onnx"), load_external_data=False)
    made_by = {output: node for node in model.graph.node for output in node.output}
    stored = {entry.name: entry for entry in model.graph.initializer}
    found = {}
    for product in [n for n in model.graph.node if n.op_type in ("MatMulNBits", "MatMul")]:
        nodes, waiting, used = [], list(product.input[1:]), []
        while waiting:
            name = waiting.pop()
            if name in stored:
                used.append(stored[name])
            else:
                nodes.insert(0, made_by[name])
                waiting += made_by[name].input
        codes = [entry.name for entry in used if entry.name.endswith(".codes")]
        if codes:
            alone = onnx.NodeProto()
            alone.CopyFrom(product)
            alone.input[0], alone.output[0] = "x", "y"
            x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [None, None]) for n in "xy")
            graph = onnx.helper.make_graph([*nodes, alone], "one", [x], [y], used)
            found[codes[0].removesuffix(".codes")] = onnx.helper.make_model(
                graph, opset_imports=model.opset_import, ir_version=10
            )
    return found


def runtime_matrices(folder):
    """First parameter's name -> the weights [N, K] that ONNX Runtime multiplies with: products with the unit matrix."""
    width = json.loads((folder / "config.json").read_bytes())
    found = {}
    for name, graph in products(folder).items():
        columns = width["intermediate_size" if "down_proj" in name else "hidden_size"]
        unit = np.eye(columns, dtype=np.float32)
        found[name] = session_of(folder, graph, 1).run(None, {"x": unit})[0].T
    return found


def test_the_runtimes_weights_are_ours_bit_for_bit(mixture):
    tensors = open_checkpoint(mixture).tensors

    found = runtime_matrices(mixture)

    for i in range(3):
        block = f"model.layers.{i}."
        joined = [tensors[f"{block}self_attn.{name}_proj.weight"].read() for name in "qkv"]
        assert np.array_equal(found[f"{block}self_attn.q_proj"], np.concatenate(joined))
    names = {f"{name}.weight" for name in found if "q_proj" not in name}
    assert "model.embed_tokens.weight" in names  # the head, which is tied
    assert len(names) == 1 + 3 * 4 - 1  # one is BF16
    for name in names:
        assert np.array_equal(found[name.removesuffix(".weight")], tensors[name].read())


def test_onnxruntime_computes_a_mixture_of_formats(mixture, tiny_llama):
    tensors = open_checkpoint(mixture).tensors
    ours = our_logits(mixture, tiny_llama)

    exact = runtime_logits(mixture, 1)

    assert {name: tensors[name].dtype for name in MIXTURE} == MIXTURE
    assert tensors["model.layers.2.mlp.up_proj.weight"].dtype == "NBITS4_G128"
    assert np.abs(exact - ours).max() < 1e-5 * ours.std()


def test_inspect_shows_the_mixture(mixture):
    found = fewbits.inspect(mixture)

    assert found.container == "onnx"
    assert {t.name: t.format for t in found.tensors if t.name in MIXTURE} == MIXTURE
    assert "NBITS8_G128" in str(found.provenance["fewbits.plan"]["model.embed_tokens.weight"])
    assert not any("pieces" in key for key in (*found.metadata, *found.provenance))


def test_a_dry_run_makes_the_first_block(tiny_llama, tmp_path):
    report = fewbits.dry_run(tiny_llama, tmp_path / "model", to="onnx", format="NBITS4_G32")

    assert report.ran
    assert not list(tmp_path.iterdir())


def test_from_gguf(tiny_llama, tmp_path):
    fewbits.quantize(tiny_llama, tmp_path / "model.gguf", format="Q8_0")
    fewbits.quantize(tmp_path / "model.gguf", tmp_path / "model", to="onnx", format="NBITS8_G32_SYM")
    ours = our_logits(tmp_path / "model", tiny_llama)

    exact = runtime_logits(tmp_path / "model", 1)

    assert np.abs(exact - ours).max() < 1e-5 * ours.std()


def test_activations_are_rounded_as_evaluate_does_it(mixture):
    tensors = open_checkpoint(mixture).tensors
    graphs = products(mixture)
    random = np.random.default_rng(0)

    for i, name in ((0, "mlp.gate_proj"), (0, "self_attn.o_proj"), (1, "mlp.up_proj")):
        weight = tensors[f"model.layers.{i}.{name}.weight"]
        x = random.standard_normal((7, weight.shape[1]), dtype=np.float32)
        rounded = TOKEN_ROUNDING[weight.dtype](torch.from_numpy(x)).numpy()
        (y,) = session_of(mixture, graphs[f"model.layers.{i}.{name}"], 4).run(None, {"x": x})
        assert np.abs(y - rounded @ weight.read().T).max() < 1e-2 * np.abs(y - x @ weight.read().T).max()


def test_onnxruntime_genai_generates_what_its_logits_say(mixture):
    generator = generator_of(mixture)
    logits = generator.get_output("logits")[0]
    generator.generate_next_token()

    expected = runtime_logits(mixture, 4)
    assert np.abs(logits - expected).max() < 1e-3 * expected.std()
    assert generator.get_next_tokens()[0] == expected[-1].argmax()


def test_joined_biases(tmp_path):
    source, folder = saved("qwen2", tmp_path)
    fewbits.quantize(source, folder, to="onnx", format="NBITS4_G32")
    ours = our_logits(folder, source)

    exact = runtime_logits(folder, 1)

    assert np.abs(exact - ours).max() < 1e-5 * ours.std()


def test_shifted_norms_and_sliding_windows(tmp_path):
    source, folder = saved("gemma2", tmp_path)
    fewbits.quantize(source, folder, to="onnx", format="BF16")
    ours = our_logits(folder, source)

    found = generator_of(folder).get_output("logits")[0]

    assert np.abs(found - ours).max() < 1e-5 * ours.std()


def test_matrices_that_the_graph_takes_apart(tmp_path):
    # The model builder takes a map with as many outputs as there are tokens for the head, and 2 * 96 is the vocabulary.
    source, folder = saved("phi3", tmp_path, intermediate_size=128)
    fewbits.quantize(source, folder, to="onnx", format="NBITS4_G32")
    both = open_checkpoint(folder).tensors["model.layers.1.mlp.gate_up_proj.weight"]
    ours = our_logits(folder, source)

    exact = runtime_logits(folder, 1)

    assert isinstance(both, PackedTensor)
    assert both.dtype == "NBITS4_G32"
    assert np.abs(exact - ours).max() < 1e-5 * ours.std()


def test_a_size_is_kept(tiny_llama, tmp_path):
    made = fewbits.quantize(tiny_llama, tmp_path / "model", to="onnx", size=1_250_000)

    files = sum(p.stat().st_size for p in (tmp_path / "model").iterdir())
    assert made.size == files
    assert 1_150_000 < files <= 1_250_000


def test_mixtures_of_experts_are_refused(tmp_path):
    saved("mixtral", tmp_path)

    with pytest.raises(ArchitectureError, match="MixtralForCausalLM"):
        fewbits.quantize(tmp_path / "source", tmp_path / "model", to="onnx")

    assert not list(tmp_path.glob("model*"))


def test_a_missing_package_is_named(tiny_llama, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "onnxruntime_genai" else find(n, *a)
    )

    with pytest.raises(MissingExtraError, match=r"onnxruntime-genai.*pip install 'fewbits\[onnx\]'"):
        fewbits.quantize(tiny_llama, tmp_path / "model", to="onnx")


def test_another_version_of_the_builder_is_refused(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda _: "0.19.1")

    with pytest.raises(ExportError, match=r"0\.19\.1.*0\.18"):
        fewbits.quantize(tiny_llama, tmp_path / "model", to="onnx")


def test_foreign_and_truncated_folders_are_refused(mixture, tmp_path):
    model = onnx.load_model(str(mixture / "model.onnx"), load_external_data=False)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "config.json").write_bytes((mixture / "config.json").read_bytes())
    data = (mixture / "model.onnx.data").read_bytes()
    (tmp_path / "model.onnx.data").write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match="truncated"):
        open_checkpoint(tmp_path)

    del model.metadata_props[:]
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="fewbits wrote"):
        open_checkpoint(tmp_path)


def test_evaluate_reads_a_folder(tiny_llama, sample_text, tmp_path):
    loss = {}
    for name in ("NBITS4_G32", "NBITS8_G32"):
        fewbits.quantize(tiny_llama, tmp_path / name, to="onnx", format=name)
        result = fewbits.evaluate(tmp_path / name, tiny_llama, text=sample_text, context=64, chunks=2)
        loss[name] = result.kl_mean

    assert 0 < 30 * loss["NBITS8_G32"] < loss["NBITS4_G32"]
