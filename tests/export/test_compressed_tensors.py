"""compressed-tensors directories in transformers with the package that owns the format, and read back by us."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import fewbits
from compressed_tensors_oracle import arguments
from fewbits.checkpoint.source import open_checkpoint, open_stored
from fewbits.errors import ArchitectureError, FormatError, PlanError
from fewbits.evaluation.activations import TOKEN_ROUNDING
from fewbits.evaluation.language_model import load_language_model
from fewbits.export.hugging_face.naming_rules import (
    computed_together,
    fused,
    is_linear,
    role_of,
    runtime_pattern,
)
from fewbits.export.registry import get_exporter
from fewbits.formats import get_format
from fewbits.formats.compressed_tensors import SCHEMES, scheme_described_by
from fewbits.language_model.transformers_model import model_of
from tiny_models import TINY_MODELS, sample_tokens, save

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

TOKENS = list(range(3, 43))
DOWN = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def made(tiny_llama, tmp_path_factory):
    """A function that quantizes the tiny model once per format."""
    folder = tmp_path_factory.mktemp("made")

    def directory(name):
        output = folder / name
        if not output.exists():
            fewbits.quantize(tiny_llama, output, to="compressed-tensors", format=name)
        return output

    return directory


def loaded(directory, dtype=torch.bfloat16):
    """transformers' model after a first pass, when its weights are unpacked; and that pass's logits."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    with torch.no_grad():
        logits = model(torch.tensor([TOKENS])).logits
    return model, logits[0].float().numpy()


def logits_of(model):
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0].float().numpy()


WEIGHT_ONLY = [
    "INT2_G64", "INT3_G64", "INT4_G64", "INT8_G128", "INT3_CHANNEL", "INT2_G16_SYM", "INT4_G128_SYM",
    "INT5_G32_SYM", "INT6_CHANNEL_SYM", "INT8_G32_SYM", "NVFP4",
    "MXFP4_PACKED",
]  # fmt: skip


@pytest.mark.parametrize("name", WEIGHT_ONLY)
def test_transformers_computes_exactly_our_dequantized_weights(made, tiny_llama, name):
    theirs, logits = loaded(made(name))

    checkpoint = open_checkpoint(made(name))
    reference = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16)
    state = reference.state_dict()
    linear = [n for n, t in checkpoint.tensors.items() if t.dtype == name]
    for weight in linear:
        ours = torch.from_numpy(checkpoint.tensors[weight].read()).to(torch.bfloat16)
        assert torch.equal(theirs.get_parameter(weight), ours), weight
        assert not torch.equal(state[weight], ours)
        state[weight].copy_(ours)
    assert len(linear) == 21
    assert np.array_equal(logits, logits_of(reference))


@pytest.mark.parametrize("name", ["INT8_CHANNEL_SYM", "FP8_E4M3_CHANNEL", "FP8_E4M3_BLOCK"])
def test_activations_are_rounded_as_the_owner_rounds_them(made, name, monkeypatch):
    def half_steps(x):
        """compressed-tensors' integers: 255 steps over the range, where vLLM's kernels take 254."""
        scale = x.abs().amax(-1, keepdim=True) / 127.5
        return (x / scale).round().clamp(-128, 127) * scale

    _, theirs = loaded(made(name), torch.float32)
    if name.startswith("INT"):
        assert TOKEN_ROUNDING[name].largest == 127
        monkeypatch.setitem(TOKEN_ROUNDING, name, half_steps)

    def ours(activations):
        model = load_language_model(open_checkpoint(made(name)), activations)
        return np.concatenate(list(model.logits(TOKENS, 0)))

    assert np.abs(ours("runtime") - theirs).max() < 1e-4
    assert np.abs(ours("float") - theirs).max() > 0.1


def test_files_have_the_names_and_dtypes_that_runtimes_ask_for(made, tiny_llama):
    with safe_open(made("INT4_G64") / "model.safetensors", "pt") as file:
        found = {
            n.removeprefix(f"{DOWN}."): (file.get_slice(n).get_dtype(), file.get_slice(n).get_shape())
            for n in file.keys()  # noqa: SIM118 - not a dict
            if n.startswith(DOWN)
        }
        shape = file.get_tensor(f"{DOWN}.weight_shape").tolist()
    assert found == {
        "weight_packed": ("I32", [256, 64]),
        "weight_scale": ("BF16", [256, 8]),
        "weight_zero_point": ("I32", [32, 8]),
        "weight_shape": ("I64", [2]),
    }
    assert shape == [256, 512]
    assert sorted(p.name for p in made("INT4_G64").iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (made("INT4_G64") / name).read_bytes() == (tiny_llama / name).read_bytes()


def test_config_is_what_the_package_parses(made):
    from compressed_tensors.quantization import QuantizationConfig

    config = json.loads((made("INT4_G128_SYM") / "config.json").read_text())
    parsed = QuantizationConfig.model_validate(config["quantization_config"])
    (group,) = parsed.config_groups.values()
    assert (group.targets, parsed.ignore, parsed.format) == (["Linear"], ["lm_head"], "pack-quantized")
    assert (group.weights.num_bits, group.weights.group_size, group.weights.symmetric) == (4, 128, True)
    assert group.input_activations is None
    assert config["model_type"] == "llama"


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_every_scheme_is_accepted_and_recognised_again(name):
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    scheme = SCHEMES[name]
    inputs = None if scheme.inputs is None else arguments(**scheme.inputs)
    parsed = QuantizationScheme(
        targets=["Linear"],
        weights=arguments(**scheme.weights),
        input_activations=inputs,
        format=scheme.layout,
    )
    compressor = BaseCompressor.get_value_from_registry(scheme.layout)
    assert compressor.can_compress(torch.nn.Linear, parsed)
    written = json.loads(parsed.model_dump_json())
    inputs = written["input_activations"]
    assert scheme_described_by(written["weights"], written["format"], inputs) == scheme
    stored = {*get_format(name).parts((32, 256)), *(["weight_shape"] if scheme.shape_part else [])}
    # The package lists what has a scale too, and FP4's zero points never.
    assert stored == set(compressor.compression_param_names(parsed))


def test_several_formats_are_groups_that_name_their_modules(tiny_llama, tmp_path):
    plan = json.loads(fewbits.plan(tiny_llama, to="compressed-tensors", format="INT4_G64_SYM").to_json())
    plan["tensors"][f"{DOWN}.weight"] = "INT8_G128_SYM"
    plan["tensors"]["model.layers.0.self_attn.o_proj.weight"] = "BF16"
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    fewbits.quantize(tiny_llama, tmp_path / "out", to="compressed-tensors", plan=tmp_path / "plan.json")

    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    targets = [group["targets"] for group in config["config_groups"].values()]
    assert sorted(map(len, targets)) == [1, 19]
    assert [DOWN] in targets
    assert config["ignore"] == ["lm_head", "model.layers.0.self_attn.o_proj"]
    theirs, _ = loaded(tmp_path / "out")
    checkpoint = open_checkpoint(tmp_path / "out")
    assert checkpoint.tensors[f"{DOWN}.weight"].dtype == "INT8_G128_SYM"
    for name, tensor in checkpoint.tensors.items():
        ours = torch.from_numpy(tensor.read()).to(torch.bfloat16)
        assert torch.equal(theirs.get_parameter(name), ours), name


@pytest.mark.parametrize("options", [{"bits": 7.0}, {"size": "1.6MB"}])
def test_a_budget_is_kept_by_formats_that_every_runtime_computes(tiny_llama, tmp_path, options):
    made = fewbits.quantize(tiny_llama, tmp_path / "out", to="compressed-tensors", **options)

    assert made.bits_per_weight <= options.get("bits", 7.0)
    assert made.size <= 1_600_000 or "bits" in options
    assert made.size == sum(p.stat().st_size for p in (tmp_path / "out").iterdir())
    assert {f for f in made.formats if f.startswith("INT")} <= set(get_exporter("compressed-tensors").planned)


def test_layers_that_runtimes_fuse_need_one_format(tiny_llama, tmp_path):
    plan = json.loads(fewbits.plan(tiny_llama, to="compressed-tensors", format="INT4_G64").to_json())
    plan["tensors"]["model.layers.2.self_attn.v_proj.weight"] = "INT8_G64"
    (tmp_path / "plan.json").write_text(json.dumps(plan))

    with pytest.raises(PlanError, match=r"as one.*v_proj\.weight is INT8_G64"):
        fewbits.quantize(tiny_llama, tmp_path / "out", to="compressed-tensors", plan=tmp_path / "plan.json")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plan.json"]


def test_rows_that_a_group_does_not_divide_get_a_smaller_one_or_are_refused(narrow_llama, tmp_path):
    made = fewbits.quantize(narrow_llama, tmp_path / "out", to="compressed-tensors", format="INT4_G128")

    assert set(made.fallbacks.values()) == {"INT4_G128 -> INT4_G64"}
    loaded(tmp_path / "out")
    plan = json.loads(fewbits.plan(narrow_llama, to="compressed-tensors", format="INT4_G64").to_json())
    for name, choice in plan["tensors"].items():
        if "down_proj" in name:
            choice["format"] = "INT4_G128"
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(FormatError, match=r"multiple of 128.*rows of 320"):
        fewbits.quantize(narrow_llama, tmp_path / "no", to="compressed-tensors", plan=tmp_path / "plan.json")
    assert not (tmp_path / "no").exists()


def test_a_format_of_another_container_is_refused(tiny_llama, tmp_path):
    with pytest.raises(PlanError, match=r"compressed-tensors can't hold.*Q4_K.*Use .*, or --to gguf"):
        fewbits.quantize(tiny_llama, tmp_path / "out", to="compressed-tensors", format="Q4_K")


def test_formats_without_kernels_are_said_to_be_so(tiny_llama, tmp_path):
    made = fewbits.quantize(tiny_llama, tmp_path / "out", to="compressed-tensors", format="INT3_G64")

    assert any("INT3_G64: transformers unpacks" in warning for warning in made.warnings)


def test_inspect_shows_formats_and_how_it_was_made(made):
    found = fewbits.inspect(made("INT4_G64"))

    weight = next(t for t in found.tensors if t.name == f"{DOWN}.weight")
    assert (weight.format, weight.shape, weight.bits_per_weight) == ("INT4_G64", (256, 512), 4.3125)
    assert found.parameters == 1_869_568
    assert found.provenance["fewbits.goal"] == "--format INT4_G64"
    assert found.provenance["fewbits.plan"][f"{DOWN}.weight"]["format"] == "INT4_G64"
    assert json.loads((made("INT4_G64") / "config.json").read_text())["fewbits.seed"] == 0


def test_evaluate_reads_the_directory(made, tiny_llama, sample_text):
    scores = [
        fewbits.evaluate(made(name), tiny_llama, text=sample_text, context=64, chunks=3).kl_mean
        for name in ("INT8_G128", "INT4_G64", "INT2_G64")
    ]
    assert 0 < scores[0] < 0.1 * scores[1] < scores[2]


def test_as_a_source_it_works_and_warns(made, tmp_path):
    result = fewbits.quantize(made("INT4_G64"), tmp_path / "out.gguf", format="Q8_0")

    assert any("already quantized (INT4_G64 x21)" in warning for warning in result.warnings)
    source, written = open_checkpoint(made("INT4_G64")), open_checkpoint(tmp_path / "out.gguf")
    a, b = source.tensors[f"{DOWN}.weight"].read(), written.tensors["blk.1.ffn_down.weight"].read()
    assert 0 < np.abs(a - b).max() < 0.02 * np.abs(a).max()


def test_like_makes_the_same_bytes_again(made, tiny_llama, tmp_path):
    fewbits.quantize(tiny_llama, tmp_path / "again", to="compressed-tensors", like=made("INT4_G64"))

    for file in made("INT4_G64").iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name


def test_a_gguf_source_gives_the_same_weights_and_tokens(made, tiny_llama, tmp_path):
    fewbits.quantize(tiny_llama, tmp_path / "source.gguf", format="BF16")
    fewbits.quantize(tmp_path / "source.gguf", tmp_path / "out", to="compressed-tensors", format="INT4_G64")

    first, second = (open_stored(d).tensors for d in (made("INT4_G64"), tmp_path / "out"))
    assert set(first) == set(second)
    for name, tensor in first.items():
        assert np.array_equal(tensor.read(), second[name].read()), name
    assert np.array_equal(loaded(made("INT4_G64"))[1], loaded(tmp_path / "out")[1])
    text = "Few bits, same model: 12 Größe <|endoftext|>"
    ids = [
        transformers.AutoTokenizer.from_pretrained(d)(text).input_ids for d in (tiny_llama, tmp_path / "out")
    ]
    assert ids[0] == ids[1]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_the_tokens_around_a_text_survive_the_way_through_gguf(tiny_llama, tmp_path):
    from fewbits.export.hugging_face.from_gguf import tokenizer_files

    fewbits.quantize(tiny_llama, tmp_path / "source.gguf", format="BF16")
    source = open_checkpoint(tmp_path / "source.gguf")
    source.metadata["tokenizer.ggml.bos_token_id"] = 0
    source.metadata["tokenizer.ggml.add_bos_token"] = True
    source.metadata["tokenizer.chat_template"] = "{{ messages[0].content }}!"
    (tmp_path / "out").mkdir()
    for name, data in tokenizer_files(source).items():
        (tmp_path / "out" / name).write_bytes(data)

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("fox")["input_ids"][0] == 0
    assert tokenizer("fox")["input_ids"].count(0) == 1
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "a!"


@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral", "qwen2_moe"])
def test_experts_are_quantized_one_by_one(name, tmp_path):
    save(TINY_MODELS[name], tmp_path / "source")
    made = fewbits.quantize(
        tmp_path / "source", tmp_path / "out", to="compressed-tensors", format="INT4_G32_SYM"
    )

    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    with torch.no_grad():
        model(torch.tensor([sample_tokens()]))
    ours = dict(model_of(open_checkpoint(tmp_path / "out")).named_parameters())
    for parameter, values in ours.items():
        assert torch.equal(model.get_parameter(parameter), values.to(torch.bfloat16)), parameter
    assert made.formats["INT4_G32_SYM"] >= 38
    ignored = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["ignore"]
    assert sum(n.endswith(("mlp.gate", "block_sparse_moe.gate")) for n in ignored) >= 2


@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral"])
def test_experts_from_gguf_get_their_published_names(name, tmp_path):
    save(TINY_MODELS[name], tmp_path / "source")
    fewbits.quantize(tmp_path / "source", tmp_path / "source.gguf", format="F32")

    exporter = get_exporter("compressed-tensors")
    published, back = (
        {t.name: t for t in exporter.tensors(open_checkpoint(tmp_path / s))}
        for s in ("source", "source.gguf")
    )
    assert set(published) == set(back)
    for tensor, output in published.items():
        assert output.shape == back[tensor].shape
        assert np.array_equal(output.source.read(), back[tensor].source.read()), tensor


def test_transposed_weights_are_refused(tiny_llama, tmp_path):
    shutil.copytree(tiny_llama, tmp_path / "source")
    config = json.loads((tiny_llama / "config.json").read_text()) | {"model_type": "gpt2"}
    (tmp_path / "source" / "config.json").write_text(json.dumps(config))

    with pytest.raises(ArchitectureError, match="gpt2"):
        fewbits.quantize(tmp_path / "source", tmp_path / "out", to="compressed-tensors")


def test_names_tell_what_is_quantized():
    matrix = (8, 8)
    for name in ("self_attn.q_proj", "mlp.experts.3.up_proj", "linear_attn.in_proj_ba", "mixer.x_proj"):
        assert is_linear(f"model.layers.0.{name}.weight", matrix), name
    for name in (
        "mlp.gate", "mlp.shared_expert_gate", "block_sparse_moe.router.layer", "linear_attn.conv1d",
        "self_attn.q_norm",
    ):  # fmt: skip
        assert not is_linear(f"model.layers.0.{name}.weight", matrix), name
    assert not is_linear("model.vision_tower.encoder.layers.0.self_attn.q_proj.weight", matrix)
    assert not is_linear("model.layers.0.self_attn.q_proj.bias", (8,))
    assert role_of("lm_head.weight", matrix) == "head"
    assert role_of("model.language_model.embed_tokens.weight", matrix) == "embedding"


def test_names_tell_what_runtimes_fuse():
    prefix = "model.layers.0."
    names = [f"{prefix}self_attn.{n}_proj.weight" for n in "qkvo"]
    names += [f"{prefix}mlp.experts.{e}.{n}_proj.weight" for e in range(2) for n in ("gate", "up", "down")]
    names += [f"{prefix}mlp.shared_expert.{n}_proj.weight" for n in ("gate", "up", "down")]
    assert sorted(map(len, computed_together(names))) == [2, 3, 6]
    assert sorted(map(len, fused(names))) == [2, 2, 2, 3]  # each expert's gate and up by themselves
    assert re.fullmatch(runtime_pattern(f"{prefix}self_attn.q_proj"), f"{prefix}self_attn.qkv_proj")
    assert re.fullmatch(runtime_pattern(f"{prefix}mlp.experts.1.up_proj"), f"{prefix}mlp.experts")
    assert not re.fullmatch(runtime_pattern(f"{prefix}self_attn.o_proj"), f"{prefix}self_attn.qkv_proj")


def test_weights_packed_by_the_owner_are_read(tiny_llama, tmp_path):
    """A directory made by the package itself: other names of keys, min-max scales, an exact class as target."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    args = arguments(num_bits=4, symmetric=False, group_size=64)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    tensors, expected = {}, {}
    for name, weight in load_file(tiny_llama / "model.safetensors").items():
        if "_proj" not in name:
            tensors[name] = weight
            continue
        grouped = weight.reshape(len(weight), -1, 64)
        scale, zero = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)
        packed = compressor.compress(
            {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}, scheme
        )
        expected[name] = compressor.decompress(packed, scheme)["weight"].float().numpy()
        tensors |= {name.removesuffix("weight") + part: value.contiguous() for part, value in packed.items()}
    shutil.copytree(tiny_llama, tmp_path / "owner")
    save_file(tensors, tmp_path / "owner" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tiny_llama / "config.json").read_text())
    group = {"targets": ["Linear"], "weights": args.model_dump(mode="json"), "input_activations": None}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": group},
    }  # fmt: skip
    (tmp_path / "owner" / "config.json").write_text(json.dumps(config))

    found = open_checkpoint(tmp_path / "owner").tensors
    for name, values in expected.items():
        assert found[name].dtype == "INT4_G64"
        assert np.array_equal(found[name].read(), values), name
        assert np.array_equal(found[name].rows(13, 41), values[13:41])
