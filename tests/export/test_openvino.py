"""OpenVINO's graphs: our constants in them, as its plugin for CPUs computes and keeps them.

Whole models, by optimum-intel and openvino-genai, are in tests_runtimes/openvino.
"""

import json
import sys

import numpy as np
import openvino
import pytest
from openvino import opset13 as opset
from safetensors.numpy import save_file

from fewbits.checkpoint.source import open_checkpoint
from fewbits.errors import ArchitectureError, ExportError, MissingExtraError, VerificationError
from fewbits.evaluation.activations import TOKEN_ROUNDING
from fewbits.export.openvino.converter import OpenvinoConverter
from fewbits.export.openvino.graph import put_weights, read_weights
from fewbits.formats import get_format
from fewbits.formats.format import QTensor
from fewbits.formats.openvino import FORMATS

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
ROWS, COLUMNS = 37, 384  # an odd number of zero points, which fill half bytes
NAMES = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight")


@pytest.fixture(params=FORMATS)
def quantized(request, tmp_path):
    """A directory of two matrices in a format."""
    fmt = get_format(request.param)
    generator = np.random.default_rng(0)
    arrays, modules = {"model.norm.weight": np.ones(COLUMNS, np.float32)}, {}
    for name in NAMES:
        weight = generator.standard_normal((ROWS, COLUMNS), np.float32) * 0.02
        blocks = weight.reshape(-1, fmt.block_of(COLUMNS))
        params = fmt.fit(blocks)
        codes = fmt.round(blocks, params).reshape(weight.shape)
        module = name.removesuffix(".weight")
        arrays |= {
            f"{module}.{part}": array
            for part, array in QTensor(fmt, weight.shape, codes, params).pack().items()
        }
        modules[module] = fmt.name
    save_file(arrays, tmp_path / "model.safetensors")
    config = {"quantization_config": {"quant_method": "openvino", "modules": modules}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return open_checkpoint(tmp_path).tensors


def graph():
    """A lookup in one matrix and a product with the other, as optimum-intel names them; float32 constants."""
    x = opset.parameter([-1, COLUMNS], np.float32, name="x")
    tokens = opset.parameter([-1], np.int64, name="tokens")
    embedding, up = (
        opset.constant(np.full((ROWS, COLUMNS), i, np.float32), name=f"self.{n}") for i, n in enumerate(NAMES)
    )
    looked_up = opset.gather(embedding, tokens, np.array(0, np.int64))
    return openvino.Model([looked_up, opset.matmul(x, up, False, True)], [tokens, x], "two")


def executed(compiled, kind):
    """Element types of the inputs of the runtime's nodes of a kind."""
    found = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        layer = node.get_rt_info()["layerType"]
        if str(getattr(layer, "value", layer)) == kind:
            found.append([source.get_element_type().get_type_name() for source in node.input_values()])
    return found


def test_the_plugin_computes_our_weights_and_keeps_them_packed(quantized, tmp_path):
    model = graph()
    put_weights(model, {name: quantized[name] for name in NAMES})
    openvino.save_model(model, tmp_path / "model.xml", compress_to_fp16=False)

    packed = sum(quantized[name].nbytes for name in NAMES)
    assert 0.99 * packed < (tmp_path / "model.bin").stat().st_size < 1.01 * packed + 256
    compiled = openvino.Core().compile_model(tmp_path / "model.xml", "CPU", EXACT)
    x = np.random.default_rng(1).standard_normal((5, COLUMNS), np.float32)
    found = compiled([np.arange(ROWS), x])
    embedding, up = (quantized[name].read() for name in NAMES)
    assert np.array_equal(found[0], embedding)
    assert np.abs(found[1] - x @ up.T).max() < 1e-5 * (x @ up.T).std()
    fmt = get_format(quantized[NAMES[1]].dtype)
    held = ("i" if fmt.symmetric else "u") + str(fmt.width)
    assert [types[0] for types in executed(compiled, "Gather")] == [held]
    assert [types[1] for types in executed(compiled, "FullyConnected")] == [held]


def test_inputs_are_rounded_as_evaluation_says(quantized):
    """The plugin's dynamic quantization, its default: on by itself where the processor has the instructions."""
    import torch

    model = graph()
    put_weights(model, {name: quantized[name] for name in NAMES})
    settings = {**EXACT, "DYNAMIC_QUANTIZATION_GROUP_SIZE": "32"}
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    x = np.random.default_rng(1).standard_normal((5, COLUMNS), np.float32)
    found = compiled([np.arange(2), x])[1]
    up = quantized[NAMES[1]].read()
    plain = x @ up.T
    rounded = TOKEN_ROUNDING[quantized[NAMES[1]].dtype](torch.from_numpy(x)).numpy() @ up.T
    if np.abs(found - plain).max() < 1e-5 * plain.std():
        pytest.skip("this processor multiplies in floating point")
    assert np.abs(found - rounded).max() < 1e-5 * plain.std()


def test_weights_read_back_bit_for_bit(quantized, tmp_path):
    model = graph()
    put_weights(model, {name: quantized[name] for name in NAMES})
    openvino.save_model(model, tmp_path / "model.xml", compress_to_fp16=False)

    written = read_weights(tmp_path / "model.xml")

    assert set(written) == set(NAMES)
    for name in NAMES:
        assert np.array_equal(written[name].read(), quantized[name].read())
        assert np.array_equal(written[name].rows(3, 12), quantized[name].rows(3, 12))


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_what_is_not_quantized_keeps_its_dtype(dtype, tmp_path):
    import torch
    from safetensors import torch as files

    kinds = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
    weight = torch.randn((ROWS, COLUMNS), generator=torch.Generator().manual_seed(0)).to(kinds[dtype])
    files.save_file({NAMES[0]: weight, NAMES[1]: weight * 2}, tmp_path / "model.safetensors")
    model = graph()
    put_weights(model, open_checkpoint(tmp_path).tensors)
    openvino.save_model(model, tmp_path / "model.xml", compress_to_fp16=False)

    assert (tmp_path / "model.bin").stat().st_size < 2 * ROWS * COLUMNS * weight.element_size() + 256
    compiled = openvino.Core().compile_model(tmp_path / "model.xml", "CPU", EXACT)
    found = compiled([np.arange(ROWS), np.zeros((1, COLUMNS), np.float32)])
    assert np.array_equal(found[0], weight.float().numpy())


def test_two_names_of_a_tensor_share_its_constant(tmp_path):
    files = {NAMES[0]: np.random.default_rng(0).standard_normal((ROWS, COLUMNS), np.float32)}
    save_file(files, tmp_path / "model.safetensors")
    tensor = open_checkpoint(tmp_path).tensors[NAMES[0]]
    model = graph()

    put_weights(model, dict.fromkeys(NAMES, tensor))

    big = [op for op in model.get_ops() if op.get_type_name() == "Constant" and op.get_byte_size() > 1000]
    assert [op.get_friendly_name() for op in big] == [NAMES[0]]


def test_a_graph_without_a_weight_is_refused(tmp_path):
    save_file({"model.other.weight": np.zeros((ROWS, COLUMNS), np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(ExportError, match=r"lacks weights.*model\.other\.weight"):
        put_weights(graph(), open_checkpoint(tmp_path).tensors)


def test_a_weight_of_another_shape_is_refused(tmp_path):
    save_file({NAMES[0]: np.zeros((ROWS + 1, COLUMNS), np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(ExportError, match="another shape"):
        put_weights(graph(), open_checkpoint(tmp_path).tensors)


def test_a_damaged_graph_does_not_read_back(tmp_path):
    (tmp_path / "model.xml").write_text("<net")
    with pytest.raises(VerificationError, match="doesn't read back"):
        read_weights(tmp_path / "model.xml")


def test_experts_are_refused_before_work_starts(tmp_path):
    name = "model.layers.0.mlp.experts.0.up_proj.weight"
    save_file({name: np.zeros((4, 4), np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mixtral"}))
    with pytest.raises(ArchitectureError, match=r"1 weights of experts.*gguf"):
        OpenvinoConverter().check(open_checkpoint(tmp_path))


@pytest.mark.parametrize(("tied", "kept"), [(True, [NAMES[0]]), (False, [NAMES[0], "lm_head.weight"])])
def test_a_tied_head_is_not_written_twice(tied, kept, tmp_path):
    weight = np.zeros((ROWS, COLUMNS), np.float32)
    save_file({NAMES[0]: weight, "lm_head.weight": weight}, tmp_path / "model.safetensors")
    config = {"model_type": "llama", "tie_word_embeddings": tied}
    (tmp_path / "config.json").write_text(json.dumps(config))

    tensors = OpenvinoConverter().intermediate.tensors(open_checkpoint(tmp_path))

    assert sorted(t.name for t in tensors) == sorted(kept)
    assert all(t.quantizable for t in tensors)


def test_the_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optimum", None)
    save_file({NAMES[0]: np.zeros((4, 4), np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(MissingExtraError, match=r"pip install 'fewbits\[openvino\]'"):
        OpenvinoConverter().check(open_checkpoint(tmp_path))


def test_a_library_that_is_there_and_breaks_is_not_called_missing(tmp_path, monkeypatch):
    """transformers says so of a torchvision made for another torch: ModuleNotFoundError without a name."""
    package = tmp_path / "packages" / "optimum" / "exporters" / "openvino"
    package.mkdir(parents=True)
    for folder in (package.parents[1], package.parent):
        (folder / "__init__.py").write_text("")
    (package / "__init__.py").write_text(
        "raise ModuleNotFoundError('Could not import module GenerationMixin')"
    )
    monkeypatch.syspath_prepend(tmp_path / "packages")
    for name in [name for name in sys.modules if name.partition(".")[0] == "optimum"]:
        monkeypatch.delitem(sys.modules, name)
    save_file({NAMES[0]: np.zeros((4, 4), np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))

    with pytest.raises(ExportError, match="torchvision"):
        OpenvinoConverter().check(open_checkpoint(tmp_path))
