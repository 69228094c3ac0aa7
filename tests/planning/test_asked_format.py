"""What a user is told whose format the container can't hold."""

import pytest

import fewbits
from fewbits.errors import FewbitsError, FormatError, PlanError
from fewbits.export.registry import get_exporter
from fewbits.planning.asked_format import require_held
from fewbits.planning.for_hardware import for_hardware


@pytest.mark.parametrize(
    ("container", "name"),
    [("gguf", "q4_k"), ("gguf", "bf16"), ("gptq", "gptq4_g64_sym"), ("mlx", "MLX_MXFP4")],
)
def test_what_a_container_holds_is_taken_in_any_case(container, name):
    require_held(name, get_exporter(container))


@pytest.mark.parametrize(
    ("container", "name", "said"),
    [
        # What has a fallback in blocks that the container can't hold either.
        ("gptq", "Q4_K", r"gptq can't hold this format: found Q4_K; .*Use GPTQ4_G32, .*or --to gguf"),
        ("gguf", "nf4", r"gguf can't hold this format: found NF4; .*Q6_K.*or --to bitsandbytes"),
        ("awq", "NVFP4", r"allowed: AWQ4_G32, AWQ4_G64, AWQ4_G128, F32, F16, BF16\. Use AWQ4_G32"),
        ("gguf", "Q4KM", r"gguf has no such format: found 'Q4KM'; allowed: Q8_0, .*\. Perhaps Q4_K$"),
        ("awq", "something", r"awq has no such format: found 'something'; allowed: AWQ4_G32, [^.]*$"),
    ],
)
def test_others_are_refused_with_the_nearest_and_where_they_belong(container, name, said):
    with pytest.raises(FewbitsError, match=said) as refused:
        require_held(name, get_exporter(container))
    assert refused.type is (FormatError if "no such" in said else PlanError)


def test_with_hardware_only_what_it_computes_is_advised():
    ampere = for_hardware(get_exporter("compressed-tensors"), "compressed-tensors", "ampere")
    with pytest.raises(
        PlanError, match=r"ampere doesn't compute.*INT3_G64.*, the nearest that works; fewbits targets"
    ):
        require_held("INT3_G64", ampere)


@pytest.mark.parametrize("asked", [{"format": "NF4"}, {"pins": ["*down_proj*=NF4"]}])
def test_formats_and_pins_are_refused_before_anything_is_written(tiny_llama, tmp_path, asked):
    with pytest.raises(PlanError, match="gptq can't hold this format: found NF4"):
        fewbits.quantize(tiny_llama, tmp_path / "out", to="gptq", **asked)
    assert not list(tmp_path.iterdir())
