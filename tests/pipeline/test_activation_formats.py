"""Files whose names say how activations are rounded, in transformers with the package that owns the formats."""

import json

import numpy as np
import pytest
import torch
import transformers

import fewbits
from fewbits.checkpoint.source import open_checkpoint
from fewbits.errors import PlanError
from fewbits.evaluation.activations import TOKEN_ROUNDING
from fewbits.evaluation.language_model import load_language_model
from fewbits.formats.compressed_tensors import SCHEMES

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

TOKENS = list(range(3, 43))
STATIC = ["INT8_CHANNEL_SYM_STATIC", "FP8_E4M3_CHANNEL_STATIC", "FP8_E4M3_TENSOR_STATIC", "NVFP4_A4"]


@pytest.fixture(scope="module")
def made(tiny_llama, sample_text, few_tokens, tmp_path_factory):
    """A function that quantizes the tiny model with calibration, once per format."""
    del few_tokens  # for what it sets
    folder = tmp_path_factory.mktemp("made")

    def directory(name):
        output = folder / name
        if not output.exists():
            options = {"effort": "balanced", "algorithm": "imatrix", "calibration": sample_text, "threads": 2}
            fewbits.quantize(tiny_llama, output, to="compressed-tensors", format=name, **options)
        return output

    return directory


def half_steps(x):
    """compressed-tensors' integers: 255 steps over the range, where vLLM's kernels take 254."""
    scale = x.abs().amax(-1, keepdim=True) / 127.5
    return (x / scale).round().clamp(-128, 127) * scale


@pytest.mark.parametrize("name", [*STATIC, "MXFP4_PACKED_A4", "INT4_G64_SYM_A8", "INT4_CHANNEL_SYM_A8"])
def test_activations_are_rounded_as_the_owner_rounds_them(made, name, monkeypatch):
    # Products of scale and code are bfloat16 in all but these; those of 4-bit numbers can't be loaded otherwise.
    dtype = torch.float32 if name.endswith("STATIC") else torch.bfloat16
    theirs = transformers.AutoModelForCausalLM.from_pretrained(made(name), dtype=dtype)
    with torch.no_grad():
        theirs(torch.tensor([TOKENS]))  # unpacks the weights
        # transformers refuses it for quantized models, since packed weights have no other type
        torch.nn.Module.float(theirs)
        for weight, tensor in open_checkpoint(made(name)).tensors.items():
            if tensor.dtype == name and dtype is torch.bfloat16:  # which the products needn't fit in
                ours = torch.from_numpy(tensor.read())
                assert torch.equal(theirs.get_parameter(weight), ours.to(dtype).float())
                theirs.get_parameter(weight).copy_(ours)
        expected = theirs(torch.tensor([TOKENS])).logits[0].numpy()
    if name.startswith("INT4"):
        monkeypatch.setitem(TOKEN_ROUNDING, name, half_steps)

    def off(activations):
        model = load_language_model(open_checkpoint(made(name)), activations)
        found = np.concatenate(list(model.logits(TOKENS, 0)))
        return float(np.sqrt(np.square(found - expected).mean()))

    assert off("runtime") < 0.02 * off("float")
    assert open_checkpoint(made(name)).tensors["model.layers.0.mlp.down_proj.weight"].dtype == name


@pytest.mark.parametrize("name", STATIC)
def test_maps_with_the_same_inputs_have_the_same_scale(made, name):
    tensors = open_checkpoint(made(name)).tensors
    part = SCHEMES[name].input_part
    found = {n: t.inputs[part] for n, t in tensors.items() if t.dtype == name}

    assert len(found) == 21
    assert len({found[f"model.layers.1.self_attn.{m}_proj.weight"] for m in "qkv"}) == 1
    assert len({found[f"model.layers.1.mlp.{m}_proj.weight"] for m in ("gate", "up")}) == 1
    assert len(set(found.values())) > 2


def test_static_scales_need_calibration(tiny_llama, tmp_path):
    with pytest.raises(PlanError, match="which calibration finds"):
        fewbits.quantize(tiny_llama, tmp_path / "out", to="compressed-tensors", format="NVFP4_A4")
    assert not list(tmp_path.iterdir())


def test_calibrated_blocks_of_rows_keep_one_scale_each(made):
    weight = "model.layers.1.mlp.down_proj.weight"
    tensor = open_checkpoint(made("FP8_E4M3_BLOCK")).tensors[weight]
    codes, scale = (tensor.parts[part].read() for part in ("weight", "weight_scale"))

    assert scale.shape == (2, 4)
    assert np.array_equal(tensor.read(), codes * np.kron(scale, np.ones((128, 128), np.float32)))


@pytest.mark.parametrize("name", sorted(n for n, s in SCHEMES.items() if s.inputs))
def test_the_package_parses_what_the_config_says_of_inputs(name):
    from compressed_tensors.quantization import QuantizationArgs

    inputs = dict(SCHEMES[name].inputs)
    parsed = json.loads(QuantizationArgs(**inputs).model_dump_json())
    assert {key: parsed[key] for key in inputs} == inputs


def test_the_report_says_what_share_of_float32s_bytes_the_weights_take(tiny_llama, tmp_path):
    result = fewbits.quantize(
        tiny_llama, tmp_path / "out", to="compressed-tensors", format="INT8_CHANNEL_SYM"
    )

    assert 0.25 < result.float32_share < 0.26
    assert "quantized weights take 25." in result.describe()
    assert "% of FP32's bytes" in result.describe()


def test_channels_are_rescaled_for_the_format_and_the_file_can_be_made_again(
    made, tiny_llama, sample_text, tmp_path
):
    first = made("INT8_CHANNEL_SYM")
    options = {"to": "compressed-tensors", "effort": "balanced", "calibration": sample_text, "threads": 2}
    fewbits.quantize(tiny_llama, tmp_path / "again", like=first, **options)
    fewbits.quantize(tiny_llama, tmp_path / "weights", format="INT8_G64", **options)

    norm = "model.layers.0.input_layernorm.weight"
    norms = [open_checkpoint(p).tensors[norm].read() for p in (tiny_llama, first, tmp_path / "weights")]
    assert not np.array_equal(norms[0], norms[1])
    assert not np.array_equal(norms[1], norms[2])
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        first / "model.safetensors"
    ).read_bytes()
