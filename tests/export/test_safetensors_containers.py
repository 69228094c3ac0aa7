"""GPTQ, AWQ, MLX, bitsandbytes and ModelOpt directories: their bytes by independent rules, and read back by us.

The runtimes themselves load them in tests_runtimes/; bitsandbytes and transformers, which are installed, do so here.
"""

import json
import re
import shutil
from dataclasses import replace

import bitsandbytes
import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from tests.tiny_models import TINY_MODELS, save

import fewbits
from fewbits.checkpoint.packed import PackedTensor
from fewbits.checkpoint.source import open_checkpoint
from fewbits.checkpoint.views import RowRange
from fewbits.errors import ArchitectureError, FormatError, PlanError
from fewbits.evaluation.activations import OutlierRounding
from fewbits.evaluation.language_model import load_language_model
from fewbits.export.registry import get_exporter
from fewbits.formats import get_format

DOWN = "model.layers.1.mlp.down_proj"
MADE = {
    "gptq": ["GPTQ4_G64_SYM", "GPTQ3_G32", "GPTQ8_CHANNEL", "GPTQ2_G128_SYM"],
    "awq": ["AWQ4_G128", "AWQ4_G32"],
    "mlx": ["MLX4_G64", "MLX3_G32_F16", "MLX6_G128", "MLX_MXFP4"],
    "bitsandbytes": ["NF4", "BNB_INT8"],
    "modelopt": ["MODELOPT_FP8", "MODELOPT_NVFP4", "MODELOPT_INT4_G128"],
    "executorch-weights": ["XNN4_G64", "XNN4_G256", "XNN4_CHANNEL", "XNN8_CHANNEL"],
}
EMBEDDING_TOO = ("mlx", "executorch-weights")
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
    assert len(packed) == (22 if container in EMBEDDING_TOO else 21)
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


@pytest.mark.parametrize(
    ("kind", "experts", "stack"),
    [
        ("qwen3_moe", "mlp.experts.{}.down_proj", "mlp.switch_mlp.down_proj"),
        ("mixtral", "block_sparse_moe.experts.{}.w2", "block_sparse_moe.switch_mlp.down_proj"),
    ],
)
def test_mlx_has_experts_in_stacks_and_they_are_read_one_by_one(tmp_path, kind, experts, stack):
    save(TINY_MODELS[kind], tmp_path / "source")
    pins = [f"{experts.format(e)}=MLX8_G32" for e in range(4)]
    fewbits.quantize(tmp_path / "source", tmp_path / "out", to="mlx", format="MLX4_G32", pins=pins)

    whole = json.loads((tmp_path / "out" / "config.json").read_text())
    assert whole["rope_theta"] == 5000  # mlx-lm's models don't look into rope_parameters
    assert whole["num_experts"] == 4
    assert "rope_scaling" not in whole
    config = whole["quantization"]
    assert config[f"model.layers.1.{stack}"] == {"group_size": 32, "bits": 8, "mode": "affine"}
    assert not any(".experts." in key for key in config)
    found, source = (open_checkpoint(tmp_path / name).tensors for name in ("out", "source"))
    assert set(found) == set(source)
    with safe_open(tmp_path / "out" / "model.safetensors", "np") as file:
        names = set(file.keys())
        weight = file.get_tensor(f"model.layers.1.{stack}.weight")
    assert not any(".experts." in name for name in names)
    assert weight.shape == (4, 64, source[f"model.layers.1.{experts.format(0)}.weight"].shape[1] // 4)
    for expert in range(4):
        tensor = found[f"model.layers.1.{experts.format(expert)}.weight"]
        assert tensor.dtype == "MLX8_G32"
        assert np.array_equal(tensor.parts["weight"].raw(0, 64), weight[expert].view(np.uint8))
        original = source[tensor.name].read()
        assert ((tensor.read() - original) ** 2).sum() < 1e-4 * (original**2).sum()


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
    for key in ("gate_proj", "up_proj"):
        plan["tensors"][f"model.layers.2.mlp.{key}.weight"] = "GPTQ4_G64_SYM"
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    fewbits.quantize(tiny_llama, tmp_path / "out", to="gptq", plan=tmp_path / "plan.json")

    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["dynamic"] == {
        r"-:^model\.layers\.0\.self_attn\.o_proj$": {},
        r"+:^model\.layers\.1\.mlp\.down_proj$": {"bits": 8, "group_size": 32, "sym": True},
        r"+:^model\.layers\.2\.mlp\.(?:gate_proj|gate_up_proj)$": {"bits": 4, "group_size": 64, "sym": True},
        r"+:^model\.layers\.2\.mlp\.(?:up_proj|gate_up_proj)$": {"bits": 4, "group_size": 64, "sym": True},
    }
    assert (
        open_checkpoint(tmp_path / "out").tensors["model.layers.2.mlp.up_proj.weight"].dtype
        == "GPTQ4_G64_SYM"
    )
    assert open_checkpoint(tmp_path / "out").tensors[f"{DOWN}.weight"].dtype == "GPTQ8_G32_SYM"

    plan["tensors"][f"{DOWN}.weight"] = "GPTQ8_G32"
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(PlanError, match="with and without _SYM"):
        fewbits.quantize(tiny_llama, tmp_path / "no", to="gptq", plan=tmp_path / "plan.json")
    assert not (tmp_path / "no").exists()


def test_gptq_says_of_all_experts_what_it_says_of_one(tmp_path):
    save(TINY_MODELS["mixtral"], tmp_path / "source")
    pins = ["layers.1.block_sparse_moe=GPTQ8_G32_SYM"]
    fewbits.quantize(tmp_path / "source", tmp_path / "out", to="gptq", format="GPTQ4_G32_SYM", pins=pins)

    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    patterns = [key.removeprefix("+:") for key in config["dynamic"]]
    for module in ("", ".0.w1", ".3.w2"):  # vLLM asks for the first, GPTQModel for the others
        assert any(re.match(p, f"model.layers.1.block_sparse_moe.experts{module}") for p in patterns)
        assert not any(re.match(p, f"model.layers.2.block_sparse_moe.experts{module}") for p in patterns)


def test_experts_are_refused_where_the_runtime_has_no_place_for_them(tmp_path):
    save(TINY_MODELS["qwen3_moe"], tmp_path / "source")
    with pytest.raises(ArchitectureError, match=r"36 weights of experts.*--to compressed-tensors"):
        fewbits.quantize(tmp_path / "source", tmp_path / "out", to="bitsandbytes")
    assert not (tmp_path / "out").exists()
    result = fewbits.quantize(tmp_path / "source", tmp_path / "gptq", to="gptq", format="GPTQ4_G32_SYM")
    assert any("experts" in warning and "vLLM does" in warning for warning in result.warnings)


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


@pytest.mark.parametrize(("name", "share"), [("NF4", 0.01), ("BNB_INT8", 0.5)])
def test_bitsandbytes_computes_the_logits_that_evaluate_sees(made, tiny_llama, name, share):
    """With 8 bits, what little it computes otherwise turns codes of the next layers over: the noise is drawn anew."""
    folder = made("bitsandbytes", name)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype == torch.bfloat16:  # transformers keeps the file's dtype here
            tensor.data = tensor.data.float()
    for layer in model.modules():
        if isinstance(layer, bitsandbytes.nn.Linear4bit):
            layer.compute_dtype, layer.compute_type_is_set = torch.float32, True
    tokens = list(range(3, 67))
    with torch.no_grad():
        theirs = model(torch.tensor([tokens])).logits[0].log_softmax(-1).double()

    def ours(path, activations):
        loaded = load_language_model(open_checkpoint(path), activations)
        return torch.from_numpy(np.concatenate(list(loaded.logits(tokens, 0)))).log_softmax(-1).double()

    def kl(first, second):
        return float((first.exp() * (first - second)).sum(-1).mean())

    quantized = ours(folder, "runtime")
    assert kl(quantized, theirs) < share * kl(ours(tiny_llama, "float"), quantized)


@pytest.mark.parametrize("name", MADE["bitsandbytes"])
def test_gradients_reach_an_adapter_through_bitsandbytes_weights(made, name):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        made("bitsandbytes", name), dtype=torch.float32
    ).train()
    layer = model.get_submodule("model.layers.0.self_attn.q_proj")
    down = torch.randn(4, 256, generator=torch.Generator().manual_seed(0)).mul(0.1).requires_grad_()
    up = torch.zeros(256, 4, requires_grad=True)  # a LoRA's two matrices, as PEFT adds them
    layer.register_forward_hook(lambda _, x, y: y + (x[0].float() @ down.T @ up.T).to(y.dtype))
    tokens = torch.arange(3, 67)[None]
    optimizer = torch.optim.AdamW([down, up], lr=3e-2)

    losses = []
    for _ in range(4):
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.01


@pytest.mark.parametrize(
    ("container", "name"),
    [
        ("gptq", "GPTQ4_G64_SYM"),
        ("awq", "AWQ4_G64"),
        ("mlx", "MLX3_G64"),
        ("bitsandbytes", "NF4"),
        ("modelopt", "MODELOPT_NVFP4"),
    ],
)
def test_balanced_predicts_held_out_text_better_than_fast(tiny_llama, sample_text, tmp_path, container, name):
    text = sample_text.read_text(encoding="utf-8").split()
    for part, words in (("read", text[:1600]), ("held-out", text[1600:])):
        (tmp_path / part).write_text(" ".join(words), encoding="utf-8")
    options = {"balanced": {"calibration": tmp_path / "read"}, "fast": {}}
    found = {}
    for effort, more in options.items():
        output = tmp_path / f"{container}-{effort}"
        fewbits.quantize(tiny_llama, output, to=container, format=name, effort=effort, **more)
        score = fewbits.evaluate(output, tiny_llama, text=tmp_path / "held-out", context=64, chunks=8)
        found[effort] = score.kl_mean
    assert found["balanced"] < 0.95 * found["fast"]


@pytest.mark.parametrize("container", ["gptq", "modelopt"])
def test_a_budget_is_met_with_what_all_runtimes_of_the_container_compute(tiny_llama, sample_text, container):
    plan = fewbits.plan(tiny_llama, to=container, bits=8, effort="balanced", calibration=sample_text)

    used = {c.format for c in plan.tensors.values()} - {"BF16", "F16", "F32"}
    assert used
    assert used <= set(get_exporter(container).planned)
    for block in range(3):
        for group in FUSED:
            of = {
                c.format for n, c in plan.tensors.items() if f"rs.{block}." in n and n.split(".")[-2] in group
            }
            assert len(of) == 1


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


@pytest.fixture(scope="module")
def uneven_llama(tmp_path_factory):
    """Rows of 192 and of 256: a group of 128 divides only those of 256."""
    from tests.conftest import write_llama

    return write_llama(tmp_path_factory.mktemp("models") / "uneven", hidden=192, ffn=256)


@pytest.mark.parametrize(
    ("container", "default", "fitting"),
    [("gptq", "GPTQ4_G128_SYM", "GPTQ4_G64_SYM"), ("awq", "AWQ4_G128", "AWQ4_G64")],
)
def test_without_a_format_all_get_the_largest_group_that_divides_all_rows(
    uneven_llama, tmp_path, container, default, fitting
):
    result = fewbits.quantize(uneven_llama, tmp_path / "out", to=container)

    assert result.formats[fitting] == 21
    assert set(result.fallbacks.values()) == {f"{default} -> {fitting}"}
    assert f"{default} -> {fitting} for 21 tensors" in result.describe()
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["group_size"] == 64
    assert "dynamic" not in config
    assert fewbits.quantize(uneven_llama, tmp_path / "bits", to=container, bits=9).size > result.size / 2


@pytest.mark.parametrize("effort", ["fast", "balanced"])
@pytest.mark.parametrize(
    ("container", "name", "nearest"), [("gptq", "GPTQ8_G128", "GPTQ8_G64"), ("awq", "AWQ4_G128", "AWQ4_G64")]
)
def test_a_format_asked_for_that_does_not_divide_the_rows_is_refused_before_work(
    uneven_llama, tmp_path, monkeypatch, container, name, nearest, effort
):
    monkeypatch.setattr("fewbits.pipeline.calibrate.calibrate", None)  # a call would be a TypeError
    with pytest.raises(FormatError, match=f"{name}, whose block is 128; allowed: {nearest}"):
        fewbits.quantize(uneven_llama, tmp_path / "out", to=container, format=name, effort=effort)
    assert not list(tmp_path.iterdir())


FUSED = ({"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"})


@pytest.mark.parametrize(
    ("container", "name", "scale"),
    [
        ("compressed-tensors", "NVFP4", "weight_global_scale"),
        ("modelopt", "MODELOPT_NVFP4", "weight_scale_2"),
    ],
)
@pytest.mark.parametrize("effort", ["fast", "balanced"])
def test_fused_tensors_have_one_scale_of_the_whole_tensor(
    uneven_scales, sample_text, tmp_path, container, name, scale, effort
):
    options = {} if effort == "fast" else {"calibration": sample_text}
    fewbits.quantize(uneven_scales, tmp_path / "out", to=container, format=name, effort=effort, **options)

    with safe_open(tmp_path / "out" / "model.safetensors", "np") as file:
        found = {key: file.get_tensor(key).item() for key in file.keys() if key.endswith(f".{scale}")}  # noqa: SIM118
    assert len(found) == 21
    for group in FUSED:
        for block in range(3):
            theirs = {s for k, s in found.items() if f"layers.{block}." in k and k.split(".")[-2] in group}
            assert len(theirs) == 1  # vLLM takes the largest for all
    assert len(set(found.values())) > 1
    ours, source = open_checkpoint(tmp_path / "out").tensors, open_checkpoint(uneven_scales).tensors
    for key in ("q_proj", "k_proj", "v_proj"):
        weight = source[f"model.layers.0.self_attn.{key}.weight"].read()
        error = ours[f"model.layers.0.self_attn.{key}.weight"].read() - weight
        # Calibrated codes are further from the weights, and channels are rescaled; a foreign scale would be far off.
        assert (error**2).sum() < (0.02 if effort == "fast" else 0.1) * (weight**2).sum()


@pytest.fixture(scope="module")
def uneven_scales(tiny_llama, tmp_path_factory):
    """The tiny model with keys eight times as large and values an eighth: each would choose a scale of its own."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("models") / "uneven-scales"
    shutil.copytree(tiny_llama, folder)
    tensors = load_file(folder / "model.safetensors")
    factors = {"q_proj": 1 / 8, "k_proj": 8.0, "v_proj": 1 / 8}
    scaled = {n: t * factors.get(n.split(".")[-2], 1.0) for n, t in tensors.items()}
    save_file(scaled, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("container", ["gptq", "awq", "compressed-tensors", "modelopt"])
def test_fused_tensors_are_quantized_together_or_not_at_all(tmp_path, container):
    from tests.conftest import write_llama

    source = write_llama(tmp_path / "source", hidden=256, ffn=512)
    exporter = get_exporter(container)
    checkpoint = open_checkpoint(source)
    cut = {n: RowRange(t, 0, 127) if "k_proj" in n else t for n, t in checkpoint.tensors.items()}
    tensors = exporter.tensors(replace(checkpoint, tensors=cut))

    able = {t.name.removeprefix("model.layers.0."): t.quantizable for t in tensors if t.block == 0}
    odd = container == "compressed-tensors"  # holds any number of rows
    assert [able[f"self_attn.{key}.weight"] for key in ("q_proj", "k_proj", "v_proj")] == 3 * [odd]
    assert able["self_attn.o_proj.weight"]


def test_mlx_mixes_groups_by_layer(uneven_llama, tmp_path):
    result = fewbits.quantize(uneven_llama, tmp_path / "out", to="mlx", format="MLX4_G128")

    assert result.formats["MLX4_G64"] == 19  # and the embedding
    assert result.formats["MLX4_G128"] == 3
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]
    assert config["group_size"] == 64
    assert config[DOWN]["group_size"] == 128


@pytest.mark.parametrize(("container", "name"), [("gptq", "GPTQ4_G64_SYM"), ("modelopt", "MODELOPT_NVFP4")])
def test_inspect_and_evaluate_read_it(made, tiny_llama, sample_text, container, name):
    found = fewbits.inspect(made(container, name))
    score = fewbits.evaluate(made(container, name), tiny_llama, text=sample_text, context=64, chunks=2)

    assert next(t for t in found.tensors if t.name == f"{DOWN}.weight").format == name
    assert found.parameters == 1_869_568
    assert 0 < score.kl_mean < 2
