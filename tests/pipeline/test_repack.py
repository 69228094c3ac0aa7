"""From one container to another: the same numbers, or a refusal that says why."""

import json

import numpy as np
import pytest
from interruption import interrupted, leftovers

import fewbits
from fewbits.checkpoint.codes import quantized_format, quantized_rows
from fewbits.checkpoint.source import open_checkpoint
from fewbits.errors import PlanError
from fewbits.export import converters
from fewbits.formats import get_format
from fewbits.formats.format import QTensor
from fewbits.formats.numbers import numbers_of, taken_over
from npy_converter import NpyConverter

DOWN = "model.layers.1.mlp.down_proj.weight"
# Container and format, and where its numbers fit: container -> format.
FITS = [
    ("compressed-tensors", "INT4_G64_SYM", {"gptq": "GPTQ4_G64_SYM", "awq": "AWQ4_G64", "mlx": "MLX4_G64"}),
    ("compressed-tensors", "INT4_G32_SYM", {"gguf": "Q4_0"}),
    ("compressed-tensors", "INT4_G128_SYM", {"gptq": "GPTQ4_G128_SYM"}),
    ("compressed-tensors", "INT4_G32", {"awq": "AWQ4_G32", "gptq": "GPTQ4_G32", "gguf": "Q5_0"}),
    ("compressed-tensors", "INT3_G64", {"awq": "AWQ4_G64"}),
    ("compressed-tensors", "INT8_G32_SYM", {"gptq": "GPTQ8_G32_SYM"}),
    ("gptq", "GPTQ4_G64_SYM", {"awq": "AWQ4_G64", "mlx": "MLX4_G64_F16", "gguf": "Q4_0"}),
    ("gptq", "GPTQ4_CHANNEL_SYM", {"awq": "AWQ4_G128", "gptq": "GPTQ4_CHANNEL_SYM"}),
    ("awq", "AWQ4_G128", {"gptq": "GPTQ4_G128", "gguf": "Q5_0"}),
    ("modelopt", "MODELOPT_NVFP4", {"compressed-tensors": "NVFP4"}),
    ("modelopt", "MODELOPT_FP8", {"compressed-tensors": "FP8_E4M3_CHANNEL"}),
    ("compressed-tensors", "FP8_E4M3_CHANNEL", {"modelopt": "MODELOPT_FP8"}),
    ("compressed-tensors", "MXFP4_PACKED", {"mlx": "MLX_MXFP4", "gguf": "MXFP4"}),
    ("gguf", "Q8_0", {"gptq": "GPTQ8_G32_SYM", "mlx": "MLX8_G32_F16"}),
    ("gguf", "Q4_0", {"awq": "AWQ4_G32", "gptq": "GPTQ4_G32_SYM", "mlx": "MLX4_G32"}),  # eighths of BF16 weights
    ("gguf", "Q4_1", {"mlx": "MLX4_G32_F16"}),
]  # fmt: skip
REFUSED = [
    ("gptq", "GPTQ4_G64_SYM", "compressed-tensors", "scales aren't numbers of BF16"),
    ("compressed-tensors", "INT4_G64", "mlx", "zero points times its scales aren't numbers"),
    ("compressed-tensors", "NVFP4", "gptq", "groups of 16"),
    ("compressed-tensors", "INT4_G128_SYM", "modelopt", "scales are negative"),
    ("bitsandbytes", "NF4", "gguf", "NF4 has numbers that no other format holds"),
    ("gguf", "Q6_K", "mlx", "Q6_K has numbers that no other format holds"),
]  # fmt: skip
MADE = sorted({(container, name) for container, name, _ in FITS} | {(c, n) for c, n, _, _ in REFUSED})


@pytest.fixture(scope="module")
def made(tiny_llama, tmp_path_factory):
    """A function that quantizes the tiny model once per format."""
    folder = tmp_path_factory.mktemp("made")

    def artifact(container, name):
        output = folder / f"{name}{'.gguf' if container == 'gguf' else ''}"
        if not output.exists():
            fewbits.quantize(tiny_llama, output, to=container, format=name)
        return output

    return artifact


def values(tensor):
    """What a quantized or plain tensor says, before a runtime rounds products: float64 [N, K]."""
    if quantized_format(tensor) is None:
        return tensor.read().astype(np.float64)
    rows = tensor.matrix[0]
    return numbers_of(quantized_rows(tensor, 0, rows)).values()


def hugging_face_tensors(path):
    """By Hugging Face's names and in its order of rows, whatever the container."""
    from fewbits.export.registry import get_exporter

    return {t.name: t.source for t in get_exporter("gptq").tensors(open_checkpoint(path))}


@pytest.mark.parametrize(("container", "name", "targets"), FITS)
def test_what_fits_is_the_same_to_the_last_bit(made, tmp_path, container, name, targets):
    source = made(container, name)
    meant = hugging_face_tensors(source)
    for target, expected in targets.items():
        result = fewbits.repack(source, tmp_path / target, to=target)

        found = hugging_face_tensors(tmp_path / target)
        assert found.keys() == meant.keys()
        assert quantized_format(found[DOWN]) == expected
        for tensor, original in meant.items():
            assert np.array_equal(values(found[tensor]), values(original)), tensor
        assert result.formats[f"{name} -> {expected}"] >= 21
        if target != "gguf":
            assert result.size == sum(p.stat().st_size for p in (tmp_path / target).iterdir())


@pytest.mark.parametrize(("container", "name", "target", "said"), REFUSED)
def test_what_does_not_fit_is_refused_by_name(made, tmp_path, container, name, target, said):
    with pytest.raises(PlanError, match=rf"without quantizing again: found .*weight.*({said})") as refusal:
        fewbits.repack(made(container, name), tmp_path / "out", to=target)
    assert f"--to {target}" in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_there_and_back_are_the_same_codes(made, tmp_path):
    source = made("compressed-tensors", "INT4_G64_SYM")
    fewbits.repack(source, tmp_path / "gptq", to="gptq")
    fewbits.repack(tmp_path / "gptq", tmp_path / "back", to="compressed-tensors")

    first, second = (open_checkpoint(path).tensors[DOWN] for path in (source, tmp_path / "back"))
    for part, stored in first.parts.items():
        rows = stored.matrix[0]
        assert np.array_equal(stored.raw(0, rows), second.parts[part].raw(0, rows)), part


def test_it_says_how_it_was_made_and_from_what(made, tmp_path):
    source = made("compressed-tensors", "INT4_G64_SYM")
    fewbits.repack(source, tmp_path / "out", to="awq")

    before, after = fewbits.inspect(source).provenance, fewbits.inspect(tmp_path / "out").provenance
    assert after["fewbits.export.name"] == "INT4_G64_SYM"
    assert len(after["fewbits.export.hash"]) == 64
    assert after["fewbits.source.hash"] == before["fewbits.source.hash"]
    assert after["fewbits.goal"] == "--format INT4_G64_SYM"


def test_it_resumes_and_ends_in_the_same_bytes(made, tmp_path, monkeypatch):
    source = made("compressed-tensors", "INT4_G64_SYM")
    fewbits.repack(source, tmp_path / "alone", to="gptq")
    with interrupted(monkeypatch, 12):
        fewbits.repack(source, tmp_path / "out", to="gptq")

    assert fewbits.repack(source, tmp_path / "out", to="gptq").resumed == 12
    for path in (tmp_path / "alone").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert leftovers(tmp_path) == []


def test_to_what_a_runtimes_library_writes(made, tmp_path, monkeypatch):
    monkeypatch.setitem(converters._CONVERTERS, "npy", ("npy_converter", "NpyConverter"))
    source = made("compressed-tensors", "INT4_G64_SYM")
    result = fewbits.repack(source, tmp_path / "out", to="npy")

    assert result.formats == {"INT4_G64_SYM -> INT4_G64_SYM": 21, "BF16 -> BF16": 8}
    written = NpyConverter().weights(tmp_path / "out")
    assert np.array_equal(written[DOWN].read(), open_checkpoint(source).tensors[DOWN].read())
    assert leftovers(tmp_path) == []
    assert fewbits.inspect(tmp_path / "out").provenance["fewbits.export.name"] == "INT4_G64_SYM"


def test_a_model_that_is_not_quantized_has_nothing_to_keep(tiny_llama, tmp_path):
    with pytest.raises(PlanError, match=r"isn't quantized.*fewbits quantize"):
        fewbits.repack(tiny_llama, tmp_path / "out", to="gptq")


def test_mixtures_take_a_format_for_each(tiny_llama, tmp_path):
    plan = json.loads(fewbits.plan(tiny_llama, to="compressed-tensors", format="INT4_G64_SYM").to_json())
    plan["tensors"][DOWN] = "INT8_G128_SYM"
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    fewbits.quantize(tiny_llama, tmp_path / "mixed", to="compressed-tensors", plan=tmp_path / "plan.json")

    fewbits.repack(tmp_path / "mixed", tmp_path / "out", to="gptq")
    found = open_checkpoint(tmp_path / "out").tensors
    assert found[DOWN].dtype == "GPTQ8_G128_SYM"
    assert found["model.layers.0.mlp.down_proj.weight"].dtype == "GPTQ4_G64_SYM"
    with pytest.raises(PlanError, match=r"of 1 tensors.*codes don't fit 4 bits"):
        fewbits.repack(tmp_path / "mixed", tmp_path / "no", to="awq")


def quantized(name, weight):
    fmt = get_format(name).prepare([weight])
    blocks = weight.reshape(-1, fmt.block_of(weight.shape[1]))
    params = fmt.fit(blocks)
    return QTensor(fmt, weight.shape, fmt.round(blocks, params).reshape(weight.shape), params)


def test_blocks_of_zeros_have_no_scale_to_lose():
    weight = np.random.default_rng(0).standard_normal((32, 128)).astype(np.float32)
    weight[3, 32:64] = 0
    source = quantized("Q8_0", weight)
    assert source.params.d.reshape(32, 4)[3, 1] == 0

    taken = taken_over(numbers_of(source), get_format("GPTQ8_G32_SYM"), weight.shape)
    assert np.array_equal(taken.dequantize(), source.dequantize())
    assert (taken.params.scale > 0).any()
    assert (taken.params.scale != 0).all()


def test_zero_points_move_where_the_container_has_none():
    weight = np.random.default_rng(1).standard_normal((8, 64)).astype(np.float32) * 0.1
    source = quantized("INT4_G64", weight)
    source.params.zero[:] = 11
    wide = taken_over(numbers_of(source), get_format("INT8_G64_SYM"), weight.shape)

    assert (wide.params.zero == 128).all()
    assert np.array_equal(numbers_of(wide).values(), numbers_of(source).values())
