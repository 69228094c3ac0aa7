import json

import pytest

from fewbits.errors import PlanError
from fewbits.planning.plan import Plan, TensorChoice, read_plan

PLAN = Plan(
    "gguf", {"a.weight": TensorChoice("Q4_K"), "b.weight": TensorChoice("Q5_0", requested="Q4_K")}, size=7
)


def test_a_plan_survives_its_file(tmp_path):
    (tmp_path / "plan.json").write_text(PLAN.to_json())

    assert read_plan(tmp_path / "plan.json") == PLAN


def test_every_tensor_has_a_line_of_its_own():
    lines = PLAN.to_json().splitlines()

    assert any(line.strip().startswith('"a.weight"') and line.rstrip().endswith("},") for line in lines)


def test_the_short_form_that_people_type_is_taken(tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps({"target": "gguf", "tensors": {"a.weight": "Q4_K"}}))

    assert read_plan(tmp_path / "plan.json").tensors["a.weight"] == TensorChoice("Q4_K")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "isn't JSON"),
        ("[]", "isn't a plan"),
        ('{"target": "gguf"}', "isn't a plan"),
        ('{"target": "gguf", "tensors": {}, "colour": 1}', "colour"),
        ('{"target": "gguf", "tensors": {"a": {"forma": "Q4_K"}}}', "entry of a"),
        ('{"target": "gguf", "tensors": {"a": {"format": "Q4_K", "x": 1}}}', "entry of a"),
        ('{"target": "gguf", "tensors": {"a": 3}}', "entry of a"),
        ('{"target": "gguf", "version": 9, "tensors": {"a": "Q4_K"}}', "version"),
    ],
)
def test_a_broken_plan_is_refused_with_what_is_wrong(tmp_path, text, named):
    (tmp_path / "plan.json").write_text(text)

    with pytest.raises(PlanError, match=named):
        read_plan(tmp_path / "plan.json")


def test_a_missing_plan_is_refused_by_name(tmp_path):
    with pytest.raises(PlanError, match=r"nowhere\.json"):
        read_plan(tmp_path / "nowhere.json")
