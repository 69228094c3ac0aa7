"""ModelOpt directories unpacked by ModelOpt's own code, which are the weights that fewbits computes with."""

import json

import torch
from modelopt.torch.export.convert_hf_config import (
    _quant_algo_to_group_config,
    convert_hf_quant_config_format,
)
from modelopt.torch.export.quant_utils import pack_int4_in_uint8
from modelopt.torch.quantization.qtensor import NVFP4QTensor
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

_ALIKE = ("ignore", "quant_algo", "quant_method", "producer")


def fp8(arrays):
    """By ModelOpt's rule for FP8_PER_CHANNEL_PER_TOKEN, read from its to_quantized_weight."""
    return arrays["weight"].to(torch.float32) * arrays["weight_scale"][:, None]


def nvfp4(arrays):
    packed, scale, second = (arrays[part] for part in ("weight", "weight_scale", "weight_scale_2"))
    shape = torch.Size((packed.shape[0], packed.shape[1] * 2))
    tensor = NVFP4QTensor(shape, torch.float32, packed)
    return tensor.dequantize(scale=scale, double_scale=second, block_sizes={-1: 16})


def int4(arrays):
    """Unpacked here, and packed again by ModelOpt to the same bytes."""
    packed, scale = arrays["weight"], arrays["weight_scale"]
    nibbles = torch.stack([packed & 15, packed >> 4], dim=1).reshape(-1, packed.shape[1]).to(torch.int8)
    weight = torch.where(nibbles > 7, nibbles - 16, nibbles) * scale.repeat_interleave(128, dim=1)
    assert torch.equal(pack_int4_in_uint8(weight, scale, 128), packed)
    return weight


UNPACK = {"FP8_PER_CHANNEL_PER_TOKEN": fp8, "W4A16_NVFP4": nvfp4, "W4A16_AWQ": int4}


def test_its_unpacked_weights_give_our_logits(artifact, compare):
    folder, expected = artifact
    described = json.loads((folder / "hf_quant_config.json").read_text())
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    theirs = convert_hf_quant_config_format(described)
    assert {key: theirs[key] for key in _ALIKE} == {key: config[key] for key in _ALIKE}
    quantization = described["quantization"]
    layers = quantization.get("quantized_layers", {})
    for algorithm in {layer["quant_algo"] for layer in layers.values()} or {quantization["quant_algo"]}:
        assert "weights" in _quant_algo_to_group_config(algorithm)  # else it isn't one of theirs
    if "config_groups" in theirs:  # it makes none for FP8 per channel or INT4 alone
        for group, ours in zip(
            theirs["config_groups"].values(), config["config_groups"].values(), strict=True
        ):
            assert group["weights"].items() <= ours["weights"].items()
            assert group["targets"] == ours["targets"]

    arrays = load_file(folder / "model.safetensors")
    modules = [name.removesuffix(".weight_scale") for name in arrays if name.endswith(".weight_scale")]
    state = {n: t.to(torch.float32) for n, t in arrays.items() if n.rpartition(".")[0] not in modules}
    for module in modules:
        parts = {n.rpartition(".")[2]: t for n, t in arrays.items() if n.rpartition(".")[0] == module}
        algorithm = layers.get(module, quantization)["quant_algo"]
        state[f"{module}.weight"] = UNPACK[algorithm](parts)
    plain = AutoConfig.from_pretrained(folder)
    del plain.quantization_config
    model = AutoModelForCausalLM.from_config(plain, dtype=torch.float32)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing in ([], ["lm_head.weight"])
    assert not unexpected
    model.tie_weights()

    with torch.no_grad():
        logits = model.eval()(torch.tensor(expected["tokens"])[None]).logits[0].numpy()

    compare(logits, expected, share=0, floor=1e-9)
