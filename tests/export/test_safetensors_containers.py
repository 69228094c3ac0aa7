"""GPTQ, AWQ, MLX, bitsandbytes and ModelOpt directories: their bytes by independent rules, and read back by us.

The runtimes themselves load them in tests_runtimes/; bitsandbytes and transformers, which are installed, do so here.
"""

import json
import shutil

import bitsandbytes
import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open

import fewbits
from fewbits.checkpoint.packed import PackedTensor
from fewbits.checkpoint.source import open_checkpoint
from fewbits.errors import PlanError
from fewbits.evaluation.activations import OutlierRounding
from fewbits.formats import get_format

DOWN = "model.layers.1.mlp.down_proj"
MADE = {
    "gptq": ["GPTQ4_G64_SYM", "GPTQ3_G32", "GPTQ8_CHANNEL", "GPTQ2_G128_SYM"],
    "awq": ["AWQ4_G128", "AWQ4_G32"],
    "mlx": ["MLX4_G64", "MLX3_G32_F16", "MLX6_G128", "MLX_MXFP4"],
    "bitsandbytes": ["NF4", "BNB_INT8"],
    "modelopt": ["MODELOPT_FP8", "MODELOPT_NVFP4", "MODELOPT_INT4_G128"],
}
CASES = [(container, name) for container, names in MADE.items() for name in names]


@pytest.fixture(scope="module")
def made(tiny_llama, tmp_path_factory):
    """A function that quantizes the tiny model once per format."""
    folder = tmp_path_factory.mktemp("made")

    def directory(container, name):
        output = folder / name
        if not output.exists():
            fewbits.quantize(tiny_llama, output, to=container, format=name)
        return output

    return directory


@pytest.mark.parametrize(("container", "name"), CASES)
def test_it_reads_back_as_the_format(made, tiny_llama, container, name):
    tensors = open_checkpoint(made(container, name)).tensors
    source = open_checkpoint(tiny_llama).tensors

    assert set(tensors) == set(source)
    packed = [t for t in tensors.values() if isinstance(t, PackedTensor)]
    assert {t.dtype for t in packed} == {name}
    assert len(packed) == (22 if container == "mlx" else 21)
    for tensor in packed:
        whole, original = tensor.read(), source[tensor.name].read()
        assert np.array_equal(tensor.rows(13, 41), whole[13:41])
        limit = {"GPTQ2_G128_SYM": 0.25, "GPTQ3_G32": 0.05, "MLX3_G32_F16": 0.05}.get(name, 0.03)
        assert ((whole - original) ** 2).sum() < limit * (original**2).sum()
        assert tensor.nbytes == get_format(name).nbytes(tensor.shape)


@pytest.mark.parametrize(("container", "name"), CASES)
def test_what_is_unpacked_packs_to_the_same_bytes(made, container, name):
    tensor = open_checkpoint(made(container, name)).tensors[f"{DOWN}.weight"]
    stored = tensor.quantized(0, tensor.shape[0])
    for part, array in stored.pack().items():
        assert array.tobytes() == tensor.parts[part].raw(0, tensor.parts[part].matrix[0]).tobytes(), part


def arrays_of(folder, *parts):
    """A module's arrays of these names."""
    with safe_open(folder / "model.safetensors", "np") as file:
        return [file.get_tensor(f"{DOWN}.{part}") for part in parts]


def bits_of(words, width, count):
    """Numbers of `width` bits from the lowest bit of each row of little-endian words: [rows, count]."""
    bits = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    bits = bits[:, : count * width].reshape(len(words), count, width)
    return (bits * (1 << np.arange(width))).sum(-1)


@pytest.mark.parametrize("name", MADE["gptq"])
def test_gptq_weights_by_its_rule(made, name):
    config = json.loads((made("gptq", name) / "config.json").read_text())["quantization_config"]
    qweight, qzeros, scales, g_idx = arrays_of(made("gptq", name), "qweight", "qzeros", "scales", "g_idx")
    codes = bits_of(qweight.T, config["bits"], 512).T
    zeros = bits_of(qzeros, config["bits"], 256) + (config["checkpoint_format"] == "gptq")

    weight = scales.astype(np.float32)[g_idx] * (codes - zeros[g_idx])

    ours = open_checkpoint(made("gptq", name)).tensors[f"{DOWN}.weight"].read()
    assert np.array_equal(weight.T.astype(np.float32), ours)
    assert config["sym"] == name.endswith("_SYM")
    assert config["checkpoint_format"] == ("gptq" if config["sym"] else "gptq_v2")


def test_awq_weights_by_its_rule(made):
    qweight, qzeros, scales = arrays_of(made("awq", "AWQ4_G128"), "qweight", "qzeros", "scales")

    def unpack(words):
        nibbles = bits_of(words, 4, words.shape[1] * 8).reshape(len(words), -1, 8)
        return nibbles[:, :, [0, 4, 1, 5, 2, 6, 3, 7]].reshape(len(words), -1)

    groups = np.arange(512) // 128
    weight = scales.astype(np.float32)[groups] * (unpack(qweight) - unpack(qzeros)[groups])
    ours = open_checkpoint(made("awq", "AWQ4_G128")).tensors[f"{DOWN}.weight"].read()
    assert np.array_equal(weight.T.astype(np.float32), ours)


def test_mlx_says_by_name_what_differs(tiny_llama, tmp_path):
    plan = json.loads(fewbits.plan(tiny_llama, to="mlx", format="MLX4_G64").to_json())
    plan["tensors"]["model.embed_tokens.weight"] = "MLX8_G32"
    plan["tensors"][f"{DOWN}.weight"] = "MLX_MXFP4"
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    fewbits.quantize(tiny_llama, tmp_path / "out", to="mlx", plan=tmp_path / "plan.json")

    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization"] == {
        "group_size": 64, "bits": 4, "mode": "affine",
        "model.embed_tokens": {"group_size": 32, "bits": 8, "mode": "affine"},
        DOWN: {"group_size": 32, "bits": 4, "mode": "mxfp4"},
    }  # fmt: skip
    found = open_checkpoint(tmp_path / "out").tensors
    assert found["model.embed_tokens.weight"].dtype == "MLX8_G32"
    assert found[f"{DOWN}.weight"].dtype == "MLX_MXFP4"


@pytest.mark.parametrize("scaled", [False, True])
def test_mlx_is_told_of_positions_in_the_keys_that_it_knows(tiny_llama, tmp_path, scaled):
    """transformers 5 writes rope_parameters, of which mlx-lm knows nothing: it would compute with its default."""
    shutil.copytree(tiny_llama, tmp_path / "source")
    config = json.loads((tiny_llama / "config.json").read_text())
    del config["rope_theta"]
    config["rope_parameters"] = {"rope_theta": 100000.0, "rope_type": "linear" if scaled else "default"}
    config["rope_parameters"] |= {"factor": 2.0} if scaled else {}
    (tmp_path / "source" / "config.json").write_text(json.dumps(config))
    fewbits.quantize(tmp_path / "source", tmp_path / "out", to="mlx", format="MLX4_G64")

    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["rope_theta"] == 100000.0
    assert written.get("rope_scaling") == ({"rope_type": "linear", "factor": 2.0} if scaled else None)
    assert written["rope_parameters"] == config["rope_parameters"]
    read = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert read.rope_parameters["rope_theta"] == 100000.0


def test_gptq_mixtures_are_exceptions_by_name_and_versions_do_not_mix(tiny_llama, tmp_path):
    plan = json.loads(fewbits.plan(tiny_llama, to="gptq", format="GPTQ4_G128_SYM").to_json())
    plan["tensors"][f"{DOWN}.weight"] = "GPTQ8_G32_SYM"
    plan["tensors"]["model.layers.0.self_attn.o_proj.weight"] = "BF16"
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    fewbits.quantize(tiny_llama, tmp_path / "out", to="gptq", plan=tmp_path / "plan.json")

    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["dynamic"] == {
        r"-:^model\.layers\.0\.self_attn\.o_proj$": {},
        r"+:^model\.layers\.1\.mlp\.down_proj$": {"bits": 8, "group_size": 32, "sym": True},
    }
    assert open_checkpoint(tmp_path / "out").tensors[f"{DOWN}.weight"].dtype == "GPTQ8_G32_SYM"

    plan["tensors"][f"{DOWN}.weight"] = "GPTQ8_G32"
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(PlanError, match="with and without _SYM"):
        fewbits.quantize(tiny_llama, tmp_path / "no", to="gptq", plan=tmp_path / "plan.json")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("name", MADE["bitsandbytes"])
def test_bitsandbytes_loads_our_weights_without_quantizing_again(made, name):
    folder = made("bitsandbytes", name)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    layer = model.get_submodule(DOWN)
    ours = open_checkpoint(folder).tensors[f"{DOWN}.weight"].read()

    if name == "NF4":
        assert isinstance(layer, bitsandbytes.nn.Linear4bit)
        state = layer.weight.quant_state
        state.dtype = torch.float32
        theirs = bitsandbytes.functional.dequantize_4bit(layer.weight.data, state).numpy()
        assert np.array_equal(theirs, ours)
        return
    assert isinstance(layer, bitsandbytes.nn.Linear8bitLt)
    x = torch.randn(1, 64, 512, generator=torch.Generator().manual_seed(0)) * 2
    with torch.no_grad():
        theirs = layer(x)
    plain, rounded = (a @ torch.from_numpy(ours).T for a in (x, OutlierRounding(6.0)(x)))
    assert (theirs - rounded).square().mean() < 0.01 * (theirs - plain).square().mean()


@pytest.mark.parametrize("container", MADE)
def test_a_budget_is_kept(tiny_llama, tmp_path, container):
    result = fewbits.quantize(tiny_llama, tmp_path / "out", to=container, size="2.5MB")

    assert result.size <= 2_500_000
    assert result.size == sum(p.stat().st_size for p in (tmp_path / "out").iterdir())


def test_rows_that_do_not_fill_words_stay_in_floating_point(tmp_path):
    from tests.conftest import write_llama

    source = write_llama(tmp_path / "source", hidden=256, ffn=272)
    result = fewbits.quantize(source, tmp_path / "out", to="gptq", format="GPTQ4_G32_SYM")

    tensors = open_checkpoint(tmp_path / "out").tensors
    assert tensors["model.layers.0.mlp.up_proj.weight"].dtype == "BF16"
    assert tensors["model.layers.0.self_attn.q_proj.weight"].dtype == "GPTQ4_G32_SYM"
    assert any("multiple of 32 rows" in warning for warning in result.warnings)


@pytest.mark.parametrize(("container", "name"), [("gptq", "GPTQ4_G64_SYM"), ("modelopt", "MODELOPT_NVFP4")])
def test_inspect_and_evaluate_read_it(made, tiny_llama, sample_text, container, name):
    found = fewbits.inspect(made(container, name))
    score = fewbits.evaluate(made(container, name), tiny_llama, text=sample_text, context=64, chunks=2)

    assert next(t for t in found.tensors if t.name == f"{DOWN}.weight").format == name
    assert found.parameters == 1_869_568
    assert 0 < score.kl_mean < 2
