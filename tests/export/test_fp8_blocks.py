"""FP8 in blocks of 128 x 128: what compressed-tensors' directories hold, and what others publish of the kind."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import fewbits
from fewbits.checkpoint.source import open_checkpoint, open_stored
from fewbits.errors import FormatError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

NAME = "FP8_E4M3_BLOCK"
DOWN = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def made(tiny_llama, tmp_path_factory):
    output = tmp_path_factory.mktemp("made") / "out"
    fewbits.quantize(tiny_llama, output, to="compressed-tensors", format=NAME)
    return output


def published(made, folder, change=lambda name, tensor: (name, tensor), **described):
    """The directory with other names or dtypes of tensors and another description."""
    shutil.copytree(made, folder)
    tensors = dict(change(*item) for item in load_file(made / "model.safetensors").items())
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((made / "config.json").read_text())
    kept = {key: value for key, value in config.items() if not key.startswith("fewbits.")}
    kept["quantization_config"] |= described
    if "quant_method" in described:
        kept["quantization_config"] = described
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


def as_deepseek(name, tensor):
    return (f"{name}_inv" if name.endswith(".weight_scale") else name), tensor


DEEPSEEK = {
    "quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]
}  # fmt: skip


def test_the_files_hold_a_scale_for_each_block(made):
    tensors = load_file(made / "model.safetensors")

    assert tensors[f"{DOWN}.weight"].dtype == torch.float8_e4m3fn
    assert (tensors[f"{DOWN}.weight_scale"].dtype, tensors[f"{DOWN}.weight_scale"].shape) == (
        torch.float32, (2, 4),
    )  # fmt: skip
    (group,) = json.loads((made / "config.json").read_text())["quantization_config"]["config_groups"].values()
    assert group["weights"]["block_structure"] == [128, 128]
    assert (group["input_activations"]["strategy"], group["input_activations"]["group_size"]) == (
        "group",
        128,
    )


def test_tensors_whose_blocks_do_not_fit_have_scales_of_rows(small_llama, tmp_path):
    """k has 64 rows, and v's follow in the matrix that runtimes make of them; of o and down all is well."""
    result = fewbits.quantize(small_llama, tmp_path / "out", to="compressed-tensors", format=NAME)

    found = {
        n.split(".")[-2]: t.dtype
        for n, t in open_checkpoint(tmp_path / "out").tensors.items()
        if t.dtype.startswith("FP8")
    }
    assert found == {
        **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "FP8_E4M3_CHANNEL"),
        **dict.fromkeys(("o_proj", "gate_proj", "up_proj", "down_proj"), NAME),
    }
    assert set(result.fallbacks.values()) == {f"{NAME} -> FP8_E4M3_CHANNEL"}
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        model(torch.tensor([[3, 4, 5]]))
    for weight, tensor in open_checkpoint(tmp_path / "out").tensors.items():
        assert torch.equal(model.get_parameter(weight), torch.from_numpy(tensor.read())), weight


def test_a_plan_with_blocks_that_do_not_fit_is_refused(small_llama, tmp_path):
    plan = json.loads(fewbits.plan(small_llama, to="compressed-tensors", format="FP8_E4M3_CHANNEL").to_json())
    for name, choice in plan["tensors"].items():
        if name.split(".")[-2] in ("q_proj", "k_proj", "v_proj"):
            choice["format"] = NAME
    (tmp_path / "plan.json").write_text(json.dumps(plan))

    with pytest.raises(FormatError, match=r"multiple of 128.*64 rows"):
        fewbits.quantize(small_llama, tmp_path / "out", to="compressed-tensors", plan=tmp_path / "plan.json")


class TestPublished:
    def test_deepseeks_kind_is_read_in_its_format_and_as_transformers_reads_it(self, made, tmp_path):
        folder = published(made, tmp_path / "fp8", as_deepseek, **DEEPSEEK)
        ours, same = open_checkpoint(folder).tensors, open_checkpoint(made).tensors
        whole = transformers.FineGrainedFP8Config(dequantize=True)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, quantization_config=whole
        )

        assert set(ours) == set(same)
        for name, tensor in ours.items():
            assert tensor.dtype == same[name].dtype, name
            assert np.array_equal(tensor.read(), same[name].read()), name
            assert torch.equal(theirs.get_parameter(name).float(), torch.from_numpy(tensor.read())), name
        assert ours[f"{DOWN}.weight"].dtype == NAME

    def test_it_becomes_a_directory_of_compressed_tensors_with_the_same_numbers(self, made, tmp_path):
        folder = published(made, tmp_path / "fp8", as_deepseek, **DEEPSEEK)
        fewbits.repack(folder, tmp_path / "out", to="compressed-tensors")

        first, second = (open_stored(d).tensors for d in (made, tmp_path / "out"))
        assert set(first) == set(second)
        for name, tensor in first.items():
            assert np.array_equal(tensor.raw(0, 1), second[name].raw(0, 1)), name
            assert np.array_equal(tensor.read(), second[name].read()), name

    def test_scales_in_bfloat16_are_read_exactly(self, made, tmp_path):
        def narrow(name, tensor):
            return name, tensor.to(torch.bfloat16) if name.endswith("_scale") else tensor

        folder = published(made, tmp_path / "narrow", narrow)
        tensor = open_checkpoint(folder).tensors[f"{DOWN}.weight"]
        stored = load_file(folder / "model.safetensors")
        scale = torch.kron(stored[f"{DOWN}.weight_scale"].float(), torch.ones(128, 128))

        assert tensor.dtype == NAME
        assert np.array_equal(tensor.read(), (stored[f"{DOWN}.weight"].float() * scale).numpy())

    @pytest.mark.parametrize(
        "described",
        [{"weight_block_size": [64, 128]}, {"activation_scheme": "static"}, {"scale_fmt": "ue8m0"}],
    )
    def test_other_kinds_are_read_as_numbers(self, made, tmp_path, described):
        def scaled(name, tensor):
            name, tensor = as_deepseek(name, tensor)
            if described.get("weight_block_size") and name.endswith("_inv"):
                tensor = torch.repeat_interleave(tensor, 2, 0)
            return name, tensor

        folder = published(made, tmp_path / "fp8", scaled, **{**DEEPSEEK, **described})
        tensor = open_checkpoint(folder).tensors[f"{DOWN}.weight"]

        assert tensor.dtype == "F8_E4M3"
        assert np.array_equal(tensor.read(), open_checkpoint(made).tensors[f"{DOWN}.weight"].read())
