"""What is converted to Core ML and LiteRT: the quantized directory, and which models are refused. Their libraries, and
what they make of it, are tested in tests_runtimes/, each in an environment of its own.
"""

import json

import numpy as np
import pytest

import fewbits
from fewbits.checkpoint.checkpoint import Checkpoint
from fewbits.checkpoint.packed import PackedTensor
from fewbits.checkpoint.source import open_checkpoint
from fewbits.errors import ArchitectureError
from fewbits.export.coreml.converter import CoremlConverter, CoremlDirectory
from fewbits.export.decoder_models import CONTEXT, context_of
from fewbits.export.litert.converter import LitertConverter, LitertDirectory
from fewbits.formats import get_format

MADE = {
    "coreml-weights": ["COREML4_G32_SYM", "COREML8_G64", "COREML4_CHANNEL", "COREML3_CHANNEL_SYM"],
    "litert-weights": ["LITERT8_CHANNEL", "LITERT4_G32", "LITERT4_CHANNEL"],
}
DIRECTORIES = [CoremlDirectory, LitertDirectory]


@pytest.mark.parametrize(("container", "name"), [(c, n) for c, names in MADE.items() for n in names])
def test_it_reads_back_as_the_format(tiny_llama, tmp_path, container, name):
    fewbits.quantize(tiny_llama, tmp_path / "made", to=container, format=name)

    source = open_checkpoint(tiny_llama).tensors
    found = open_checkpoint(tmp_path / "made").tensors
    packed = [t for t in found.values() if isinstance(t, PackedTensor)]

    assert set(found) == set(source)
    assert len(packed) == 22  # the embedding too
    for tensor in packed:
        assert tensor.dtype == name
        original, whole = source[tensor.name].read(), tensor.read()
        assert np.array_equal(tensor.rows(5, 18), whole[5:18])
        limit = 0.08 if name.startswith("COREML3") else 0.03
        assert 0 < ((whole - original) ** 2).sum() < limit * (original**2).sum()


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_all_formats_are_known_and_go_from_most_to_fewest_bits(directory):
    bits = [get_format(name).bits for name in directory.formats]

    assert set(directory.planned) <= set(directory.formats)
    assert directory.default_format in directory.formats
    assert bits == sorted(bits, reverse=True)


def weights(rows=64, columns=128):
    x = np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)
    x[0] *= 2000
    x[1] *= 1e-6
    x[2] = 0
    return x


@pytest.mark.parametrize("name", ["COREML4_G32", "COREML8_CHANNEL_SYM", "COREML2_CHANNEL_SYM"])
def test_core_ml_multiplies_in_float16(name):
    fmt, x = get_format(name), weights()
    blocks = x.reshape(-1, fmt.block_of(x.shape[1]))
    params = fmt.fit(blocks)
    codes = fmt.round(blocks, params)

    # constexpr_blockwise_shift_scale: scale * (data - offset), all in the scale's dtype.
    scale = params.scale[:, None].astype(np.float16)
    product = scale * (codes.astype(np.float16) - params.zero[:, None].astype(np.float16))

    assert np.array_equal(params.scale, scale[:, 0].astype(np.float32))
    assert np.array_equal(fmt.decode(codes, params), product.astype(np.float32))
    assert np.isfinite(product).all()


@pytest.mark.parametrize("name", ["LITERT8_CHANNEL", "LITERT4_G32", "LITERT4_CHANNEL"])
def test_litert_takes_positive_scales_and_a_symmetric_range(name):
    fmt, x = get_format(name), weights()
    blocks = x.reshape(-1, fmt.block_of(x.shape[1]))
    params = fmt.fit(blocks)
    codes = fmt.round(blocks, params)

    assert (params.scale > 0).all()
    assert (params.zero == 1 << (fmt.width - 1)).all()
    if fmt.width == 8:
        assert codes.min() >= 1  # -127
        assert fmt.round(np.full((1, 128), -1e9, np.float32), params.take(slice(1)))[0, 0] == 1
    if fmt.block:
        as_bfloat16 = (params.scale.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        assert np.array_equal(params.scale, as_bfloat16)
        assert np.array_equal(params.scale, params.scale.astype(np.float16).astype(np.float32))
        assert params.scale.min() >= 2.0**-14  # no subnormal one


def model(config, tensors=None):
    config = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 64} | config
    return Checkpoint(path=None, container="safetensors", tensors=tensors or {}, files=(), config=config)


@pytest.mark.parametrize("converter", [CoremlConverter(), LitertConverter()])
@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"layer_types": ["linear_attention", "full_attention"]}, "linear_attention"),
        ({"kv_lora_rank": 512}, "kv_lora_rank"),
    ],
)
def test_other_attention_is_refused(converter, config, found):
    with pytest.raises(ArchitectureError, match=found) as caught:
        converter.check(model(config))
    assert "gguf" in caught.value.action


@pytest.mark.parametrize("converter", [CoremlConverter(), LitertConverter()])
def test_experts_are_refused(converter, tiny_llama):
    tensor = open_checkpoint(tiny_llama).tensors["model.norm.weight"]
    with pytest.raises(ArchitectureError, match="experts"):
        converter.check(model({}, {"model.layers.0.mlp.experts.0.up_proj.weight": tensor}))
    converter.check(open_checkpoint(tiny_llama))


def test_litert_refuses_positions_by_length():
    with pytest.raises(ArchitectureError, match="longrope"):
        LitertConverter().check(model({"rope_parameters": {"rope_type": "longrope"}}))


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ({"max_position_embeddings": 256}, 256),
        ({"max_position_embeddings": 131072}, CONTEXT),
        ({"max_position_embeddings": 32768, "sliding_window": 512}, 512),
        ({"layer_types": ["full_attention"], "sliding_window": 512}, CONTEXT),
        ({"sliding_window": 512, "use_sliding_window": False}, CONTEXT),
    ],
)
def test_the_context_stays_within_what_one_mask_is_right_for(config, context):
    assert context_of(model(config)) == context


def test_the_config_names_the_format_of_each_module(tiny_llama, tmp_path):
    pins = ["model.layers.0.*=LITERT8_CHANNEL"]
    fewbits.quantize(tiny_llama, tmp_path / "made", to="litert-weights", format="LITERT4_G64", pins=pins)

    described = json.loads((tmp_path / "made" / "config.json").read_text())["quantization_config"]

    assert described["quant_method"] == "fewbits"
    assert described["modules"]["model.layers.0.mlp.up_proj"] == {
        "format": "LITERT8_CHANNEL",
        "shape": [512, 256],
    }
    assert described["modules"]["model.layers.1.mlp.up_proj"]["format"] == "LITERT4_G64"
