"""Scales of a quantized key-value cache: calibrated, written, and taken over by transformers."""

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

import fewbits
from fewbits.calibration.text import calibration_tokens
from fewbits.checkpoint.source import open_checkpoint
from fewbits.errors import EvaluationError, FewbitsError, PlanError
from fewbits.evaluation.language_model import load_language_model

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

TOKENS = list(range(3, 99))
LARGEST = 448.0


@pytest.fixture(autouse=True, scope="module")
def _few(few_tokens):
    return few_tokens


@pytest.fixture(scope="module")
def made(tiny_llama, sample_text, tmp_path_factory):
    """A function: a directory with calibrated scales, of nearly exact weights unless a format is named."""
    folder = tmp_path_factory.mktemp("made")

    def directory(kv_cache="fp8", to="compressed-tensors", name="INT8_G32_SYM", **options):
        output = folder / "-".join([to, name, kv_cache, *options])
        if not output.exists():
            fewbits.quantize(
                tiny_llama, output, to=to, format=name, kv_cache=kv_cache, effort="balanced",
                calibration=sample_text, threads=1, **options,
            )  # fmt: skip
        return output

    return directory


@pytest.fixture(scope="module")
def peaks(tiny_llama, sample_text):
    """A function: the largest keys and values [layers, 2, H] of a model on the calibration tokens."""
    read = calibration_tokens(open_checkpoint(tiny_llama), sample_text, 4096, seed=0).blocks

    def largest(directory):
        model = load_language_model(open_checkpoint(directory), "float")._model
        with torch.no_grad():
            cache = model(input_ids=torch.from_numpy(read), use_cache=True).past_key_values
        return np.array(
            [[x.abs().amax((0, 2, 3)).tolist() for x in (layer.keys, layer.values)] for layer in cache.layers]
        )

    return largest


def scales_of(directory):
    tensors = load_file(directory / "model.safetensors")
    return {name: t for name, t in tensors.items() if name.endswith(("k_scale", "v_scale"))}


@pytest.mark.parametrize("fold", [True, False])
def test_scales_are_the_largest_magnitudes_of_the_written_model(made, peaks, tiny_llama, fold):
    directory = made() if fold else made(fold=False)
    scales, largest = scales_of(directory), peaks(directory)

    assert len(scales) == 6
    for layer, of_layer in enumerate(largest):
        for part, of_part in zip("kv", of_layer, strict=True):
            scale = scales[f"model.layers.{layer}.self_attn.{part}_scale"]
            assert scale.shape == (1,)
            assert scale.dtype == torch.bfloat16
            assert float(scale) * LARGEST == pytest.approx(of_part.max(), rel=0.03)
    # Channels of values were rescaled on their way, and the scales with them.
    moved = np.abs(largest / peaks(tiny_llama) - 1).max(axis=(0, 2))
    assert moved[0] < 0.03
    assert (moved[1] > 0.1) == fold


def test_a_scale_for_each_head(made, peaks):
    directory = made("fp8_per_head", fold=False)
    scales, largest = scales_of(directory), peaks(directory)

    config = json.loads((directory / "config.json").read_text())["quantization_config"]
    assert config["kv_cache_scheme"]["strategy"] == "attn_head"
    for layer, of_layer in enumerate(largest):
        for part, of_part in zip("kv", of_layer, strict=True):
            scale = scales[f"model.layers.{layer}.self_attn.{part}_scale"]
            assert scale.shape == (4, 1, 1)
            assert np.allclose(scale.flatten().float() * LARGEST, of_part, rtol=0.03)


@pytest.mark.parametrize("kv_cache", ["fp8", "fp8_per_head"])
def test_transformers_takes_the_scales_over_and_computes_what_evaluate_simulates(made, kv_cache):
    directory = made(kv_cache, fold=False)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    ids = torch.tensor([TOKENS])
    with torch.no_grad():
        logits = theirs(ids).logits[0].numpy()

    for name, scale in scales_of(directory).items():
        assert torch.equal(theirs.get_parameter(name), scale.float())
    models = [load_language_model(open_checkpoint(directory), "float", cache) for cache in (None, "float")]
    assert models[0].kv_cache.name.startswith("fp8_e4m3, a scale per")
    with torch.no_grad():
        for model in models:
            for name, parameter in model._model.named_parameters():  # unpacked by them to bfloat16
                parameter.copy_(theirs.get_parameter(name))
    rounded, exact = (m.forward(TOKENS, None, len(TOKENS))[0].numpy() for m in models)
    effect = np.abs(rounded - exact).max()
    assert np.abs(rounded - logits).max() < 0.01 * effect
    assert effect > 0.1


def test_evaluate_simulates_what_the_config_says(made, tiny_llama, unseen):
    def evaluation(**options):
        return fewbits.evaluate(made(), tiny_llama, text=unseen, context=64, chunks=2, threads=1, **options)

    described = evaluation()
    assert described.kv_cache == "fp8_e4m3, a scale per layer"
    assert described.kv_cache_bytes == 3 * 2 * 4 * 32
    assert described.kv_cache_bytes_f16 == 2 * described.kv_cache_bytes
    assert described.kl_mean > 2 * described.kl_mean_float_kv_cache
    # As vLLM does when it is told to, by name: with the scales of the files.
    assert evaluation(kv_cache="fp8").kl_mean == described.kl_mean
    plain = evaluation(kv_cache="float")
    assert (plain.kl_mean, plain.kl_mean_float_kv_cache) == (described.kl_mean_float_kv_cache, None)
    assert "KL without rounding it" in described.describe()


def test_modelopt_has_them_below_the_projections(made):
    directory = made(to="modelopt", name="MODELOPT_FP8", fold=False)
    scales = scales_of(directory)

    assert len(scales) == 6
    assert scales["model.layers.2.self_attn.v_proj.v_scale"].shape == ()
    for name, scale in scales_of(made(fold=False)).items():
        part = name[-len("k_scale")]
        assert float(scales[name.replace("self_attn.", f"self_attn.{part}_proj.")]) == float(scale)
    described = json.loads((directory / "hf_quant_config.json").read_text())["quantization"]
    assert described["kv_cache_quant_algo"] == "FP8"
    config = json.loads((directory / "config.json").read_text())["quantization_config"]
    assert config["kv_cache_scheme"] == {"dynamic": False, "num_bits": 8, "type": "float"}
    assert load_language_model(open_checkpoint(directory), kv_cache=None).kv_cache.scales.keys[1] > 0


def test_made_like_another_it_has_the_same_bytes(made, tiny_llama, sample_text, tmp_path):
    fewbits.quantize(
        tiny_llama,
        tmp_path / "again",
        to="compressed-tensors",
        like=made(),
        effort="balanced",
        calibration=sample_text,
        threads=1,
    )

    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (made() / name).read_bytes()


def test_what_cannot_be_is_refused(tiny_llama, tmp_path, made):
    def quantize(**options):
        fewbits.quantize(tiny_llama, tmp_path / "out", **{"effort": "balanced", **options})

    with pytest.raises(PlanError, match="no place for scales"):
        quantize(kv_cache="fp8")
    with pytest.raises(PlanError, match="allowed: fp8"):
        quantize(to="modelopt", kv_cache="int8")
    with pytest.raises(FewbitsError, match="needs calibration"):
        quantize(to="compressed-tensors", kv_cache="fp8", effort="fast")
    assert not (tmp_path / "out").exists()
    config = json.loads((made() / "config.json").read_text())
    config["quantization_config"]["kv_cache_scheme"]["num_bits"] = 4
    changed = tmp_path / "changed"
    changed.mkdir()
    for file in made().iterdir():
        (changed / file.name).symlink_to(file)
    (changed / "config.json").unlink()
    (changed / "config.json").write_text(json.dumps(config))
    with pytest.raises(EvaluationError, match="can't simulate"):
        load_language_model(open_checkpoint(changed), kv_cache=None)
