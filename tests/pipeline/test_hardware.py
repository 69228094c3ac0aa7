"""--hardware: plans of nothing but what it computes, and refusals that name the nearest thing that works."""

import json

import pytest

import fewbits
from fewbits.errors import FewbitsError, PlanError
from fewbits.export.registry import get_exporter
from fewbits.planning.asked_format import nearest
from fewbits.planning.for_hardware import for_hardware
from fewbits.targets.registry import target_of

TO = {"to": "compressed-tensors"}


def quantized(plan):
    return {c.format for c in plan.tensors.values()} - {"F32", "BF16", "F16"}


@pytest.mark.parametrize("hardware", ["x86-cpu", "Ampere", "tpu"])
@pytest.mark.parametrize("goal", [{"bits": 9.5}, {"bits": 12.0}, {}])
def test_plans_use_what_the_hardware_computes(tiny_llama, hardware, goal):
    plan = fewbits.plan(tiny_llama, **TO, **goal, hardware=hardware)

    computes = target_of("compressed-tensors").computes
    assert quantized(plan)
    assert all(computes(name, hardware.lower()) for name in quantized(plan))
    assert f"--hardware {hardware.lower()}" in plan.goal


def test_without_it_plans_are_what_they_were(tiny_llama):
    free = fewbits.plan(tiny_llama, **TO, bits=12.0)
    bound = fewbits.plan(tiny_llama, **TO, bits=12.0, hardware="x86-cpu")

    assert any(name.startswith("INT8") for name in quantized(free))
    assert not any(name.startswith("INT8_G") for name in quantized(bound))


@pytest.mark.parametrize(
    ("name", "hardware", "instead"),
    [
        ("NVFP4_A4", "ampere", "NVFP4"),
        ("INT8_CHANNEL_SYM", "blackwell", "FP8_E4M3_CHANNEL"),
        ("INT3_G64", "hopper", "INT4_G128_SYM"),
        ("int8_g64_sym", "x86-cpu", "INT8_CHANNEL_SYM"),
    ],
)
def test_a_format_that_it_does_not_compute_is_refused_with_the_nearest(tiny_llama, name, hardware, instead):
    with pytest.raises(PlanError, match=rf"{hardware} doesn't compute.*{name.upper()}.*--format {instead},"):
        fewbits.plan(tiny_llama, **TO, format=name, hardware=hardware)
    fewbits.plan(tiny_llama, **TO, format=instead, hardware=hardware)


@pytest.mark.parametrize(
    ("to", "hardware", "message"),
    [
        ("compressed-tensors", "abacus", r"'abacus'.*turing.*fewbits targets"),
        ("compressed-tensors", "apple", r"'apple'.*Use --to gguf or bitsandbytes or mlx or coreml"),
        ("coreml", "ampere", r"'ampere'.*allowed.*apple"),
    ],
)
def test_hardware_that_runs_nothing_of_a_container_is_refused(tiny_llama, to, hardware, message):
    with pytest.raises(PlanError, match=message):
        fewbits.plan(tiny_llama, to=to, hardware=hardware)


def test_pins_and_plans_are_held_to_it_too(tiny_llama, tmp_path):
    plan = fewbits.plan(tiny_llama, **TO, format="INT8_CHANNEL_SYM")
    (tmp_path / "plan.json").write_text(plan.to_json())

    with pytest.raises(PlanError, match=r"blackwell doesn't compute.*INT8_CHANNEL_SYM"):
        fewbits.quantize(
            tiny_llama, tmp_path / "out", **TO, plan=tmp_path / "plan.json", hardware="blackwell"
        )
    with pytest.raises(FewbitsError, match="INT3_G64"):
        fewbits.plan(tiny_llama, **TO, pins=["down_proj=INT3_G64"], hardware="ampere")
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_the_artifact_says_so_and_can_be_made_again(tiny_llama, tmp_path):
    fewbits.quantize(tiny_llama, tmp_path / "out", **TO, bits=10, hardware="x86-cpu")
    fewbits.quantize(tiny_llama, tmp_path / "again", **TO, like=tmp_path / "out")

    goal = json.loads((tmp_path / "out" / "config.json").read_text())["fewbits.goal"]
    assert goal == "--bits 10 --hardware x86-cpu"
    first, second = (p / "model.safetensors" for p in (tmp_path / "out", tmp_path / "again"))
    assert first.read_bytes() == second.read_bytes()


def test_shapes_that_the_usual_kernel_does_not_take_are_told(tiny_llama, narrow_llama, tmp_path):
    options = {**TO, "format": "INT4_G32_SYM"}
    odd = fewbits.quantize(narrow_llama, tmp_path / "odd", **options, hardware="ampere")
    elsewhere = fewbits.quantize(narrow_llama, tmp_path / "cpu", **options, hardware="x86-cpu")
    even = fewbits.quantize(tiny_llama, tmp_path / "even", **options, hardware="ampere")

    def told(result):
        return [w for w in result.warnings if "Marlin takes" in w]

    assert len(told(odd)) == 1
    assert "64 rows and 128 columns, so that for 21 of these" in told(odd)[0]
    assert not told(elsewhere)
    assert not told(even)


def test_a_converters_directory_is_restricted_as_its_container():
    npu = for_hardware(get_exporter("openvino"), "openvino", "intel-npu")

    assert npu.formats == ("OV8_CHANNEL_SYM", "OV4_G128_SYM", "OV4_CHANNEL_SYM")
    assert npu.default_format == "OV4_G128_SYM"
    assert get_exporter("openvino").hardware == ""


def test_the_nearest_format_has_about_the_bits_and_then_the_error():
    assert nearest("INT4_G64", ("INT8_G64_SYM", "INT4_G64_SYM", "INT4_G32_SYM")) == "INT4_G64_SYM"
    assert nearest("FP8_E4M3_CHANNEL", ("INT8_CHANNEL_SYM", "MXFP4_PACKED")) == "INT8_CHANNEL_SYM"


@pytest.mark.parametrize(
    ("hardware", "said"),
    [
        ("h200", r"no such hardware: found 'h200'; .*Use hopper \(NVIDIA GPUs"),
        ("RTX4090", r"no such hardware: found 'RTX4090'; .*Use ada \("),
        ("abacus", r"no such hardware: found 'abacus'; allowed: turing, .*aws-neuron\. See: fewbits targets"),
    ],
)
def test_names_of_products_lead_to_the_kind_of_hardware(tiny_llama, hardware, said):
    with pytest.raises(PlanError, match=said):
        fewbits.plan(tiny_llama, **TO, hardware=hardware)
