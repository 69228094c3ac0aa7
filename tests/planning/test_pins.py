import pytest

from fewbits.errors import FormatError, PlanError
from fewbits.planning.knapsack import Option
from fewbits.planning.pins import Pin, apply_pins, parse_pins, pinned_formats

NAMES = [
    "token_embd.weight",
    *(f"blk.{i}.{part}.weight" for i in (0, 1, 10) for part in ("attn_v", "attn_output", "ffn_down")),
    "output.weight",
]


def test_texts_become_pins_with_the_formats_own_spelling():
    assert parse_pins(["attn_v=q6_k", " blk.0.* = Q8_0", "token_embd=f16"]) == [
        Pin("attn_v", "Q6_K"),
        Pin("blk.0.*", "Q8_0"),
        Pin("token_embd", "F16"),
    ]


@pytest.mark.parametrize("text", ["", "attn_v", "=Q8_0", "attn_v=", " = "])
def test_texts_of_another_shape_are_refused(text):
    with pytest.raises(PlanError, match="PATTERN=FORMAT"):
        parse_pins([text])


def test_an_unknown_format_is_refused_with_the_known_ones():
    with pytest.raises(FormatError, match=r"Q7_X.*Q8_0"):
        parse_pins(["attn_v=Q7_X"])


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("output.weight", ["output.weight"]),
        ("output", ["output.weight"]),
        ("attn_v", ["blk.0.attn_v.weight", "blk.1.attn_v.weight", "blk.10.attn_v.weight"]),
        ("blk.1", ["blk.1.attn_v.weight", "blk.1.attn_output.weight", "blk.1.ffn_down.weight"]),
        ("down", ["blk.0.ffn_down.weight", "blk.1.ffn_down.weight", "blk.10.ffn_down.weight"]),
        ("blk.?.ffn_*", ["blk.0.ffn_down.weight", "blk.1.ffn_down.weight"]),
        ("blk.[1]*.attn_v.weight", ["blk.1.attn_v.weight", "blk.10.attn_v.weight"]),
        ("attn_v*", []),
        ("ATTN_V", []),
    ],
)
def test_what_a_pattern_matches(pattern, matched):
    assert Pin(pattern, "Q8_0").matches(NAMES) == matched


def test_the_last_pin_of_a_tensor_counts():
    pinned = pinned_formats(parse_pins(["blk.0.*=Q8_0", "attn_v=Q5_1"]), NAMES)
    assert pinned["blk.0.attn_v.weight"] == "Q5_1"
    assert pinned["blk.0.ffn_down.weight"] == "Q8_0"
    assert "blk.1.ffn_down.weight" not in pinned


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(PlanError, match=r"attn_w=Q8_0.*token_embd\.weight"):
        pinned_formats(parse_pins(["attn_v=Q8_0", "attn_w=Q8_0"]), NAMES)


def test_pins_restrict_options_to_one():
    options = {n: [Option(4, 1.0, "Q4_0"), Option(8, 0.1, "Q8_0")] for n in ("a", "b")}
    assert apply_pins(options, {"a": "Q8_0"}) == {"a": [Option(8, 0.1, "Q8_0")], "b": options["b"]}


def test_a_format_that_the_tensor_cannot_have_is_refused():
    with pytest.raises(PlanError, match=r"a can't be pinned.*Q6_K.*Q4_0"):
        apply_pins({"a": [Option(4, 1.0, "Q4_0")]}, {"a": "Q6_K"})
