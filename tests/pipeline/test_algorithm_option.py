"""`--algorithm`: how codes are chosen, apart from effort, plan and budget."""

import hashlib
import json

import numpy as np
import pytest

import fewbits
from fewbits.algorithms import hqq
from fewbits.checkpoint.source import open_checkpoint
from fewbits.errors import FewbitsError, PlanError
from fewbits.formats import get_format
from fewbits.pipeline.provenance import Provenance

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def algorithms(path):
    """Tensor name -> algorithm, of an artifact's plan."""
    plan = Provenance.from_metadata(open_checkpoint(path).metadata, str(path)).plan_data
    return {name: choice["algorithm"] for name, choice in plan.items()}


@pytest.fixture(scope="module")
def calibrated(sample_text, few_tokens):
    """Options of a calibrated run."""
    del few_tokens  # for what it sets
    return {"effort": "balanced", "calibration": sample_text, "threads": 2}


@pytest.fixture
def without_calibration(monkeypatch):
    """Gathering statistics fails the test."""

    def refuse(*_, **__):
        pytest.fail("statistics were gathered")

    monkeypatch.setattr("fewbits.pipeline.calibrate.calibrate", refuse)


def test_all_quantized_tensors_get_it(tiny_llama, tmp_path):
    made = fewbits.quantize(tiny_llama, tmp_path / "out.gguf", format="Q4_0", algorithm="hqq", threads=2)
    fewbits.quantize(tiny_llama, tmp_path / "plain.gguf", format="Q4_0")

    assert set(algorithms(tmp_path / "out.gguf").values()) == {"hqq", "none"}
    assert made.size == (tmp_path / "out.gguf").stat().st_size == (tmp_path / "plain.gguf").stat().st_size
    name = "model.layers.1.mlp.down_proj.weight"
    weight = open_checkpoint(tiny_llama).tensors[name].read()
    found, plain = (
        open_checkpoint(tmp_path / f).tensors["blk.1.ffn_down.weight"].read()
        for f in ("out.gguf", "plain.gguf")
    )
    assert np.array_equal(found, hqq.quantize(weight, get_format("Q4_0")).dequantize())
    assert not np.array_equal(found, plain)


def test_the_size_is_kept_and_known_before(tiny_llama, tmp_path):
    plan = fewbits.plan(tiny_llama, size="1.3MB", algorithm="hqq")
    made = fewbits.quantize(tiny_llama, tmp_path / "out.gguf", size="1.3MB", algorithm="hqq")

    assert plan.size == made.size <= 1_300_000
    assert {c.algorithm for c in plan.tensors.values()} == {"hqq", "none"}


def test_a_plan_may_name_it_for_some_tensors(tiny_llama, tmp_path):
    plan = json.loads(fewbits.plan(tiny_llama, format="Q4_0").to_json())
    plan["tensors"]["blk.2.ffn_up.weight"]["algorithm"] = "hqq"
    (tmp_path / "plan.json").write_text(json.dumps(plan))

    fewbits.quantize(tiny_llama, tmp_path / "out.gguf", plan=tmp_path / "plan.json")

    found = algorithms(tmp_path / "out.gguf")
    assert [name for name, algorithm in found.items() if algorithm == "hqq"] == ["blk.2.ffn_up.weight"]


def test_it_goes_before_the_plan(tiny_llama, tmp_path):
    (tmp_path / "plan.json").write_text(fewbits.plan(tiny_llama, format="Q4_0", algorithm="hqq").to_json())

    fewbits.quantize(tiny_llama, tmp_path / "out.gguf", plan=tmp_path / "plan.json", algorithm="rtn")
    fewbits.quantize(tiny_llama, tmp_path / "plain.gguf", format="Q4_0")

    assert set(algorithms(tmp_path / "out.gguf").values()) == {"rtn", "none"}
    ours, plain = (open_checkpoint(tmp_path / f).tensors for f in ("out.gguf", "plain.gguf"))
    assert all(np.array_equal(tensor.read(), plain[name].read()) for name, tensor in ours.items())


def test_like_makes_the_same_bytes_again(tiny_llama, tmp_path):
    fewbits.quantize(tiny_llama, tmp_path / "first.gguf", bits=5.0, algorithm="hqq")
    fewbits.quantize(tiny_llama, tmp_path / "again.gguf", like=tmp_path / "first.gguf")

    assert digest(tmp_path / "first.gguf") == digest(tmp_path / "again.gguf")


@pytest.mark.usefixtures("without_calibration")
@pytest.mark.parametrize("name", ["rtn", "hqq"])
def test_nothing_is_calibrated_for_what_needs_no_statistics(tiny_llama, tmp_path, name):
    made = fewbits.quantize(
        tiny_llama, tmp_path / "out.gguf", format="Q4_0", algorithm=name, effort="balanced"
    )

    assert made.effort == "balanced"
    assert set(algorithms(tmp_path / "out.gguf").values()) == {name, "none"}


@pytest.mark.usefixtures("without_calibration")
def test_nothing_is_calibrated_for_a_plan_that_needs_no_statistics(tiny_llama, tmp_path):
    (tmp_path / "plan.json").write_text(fewbits.plan(tiny_llama, format="Q4_0", algorithm="hqq").to_json())

    fewbits.quantize(tiny_llama, tmp_path / "out.gguf", plan=tmp_path / "plan.json", effort="balanced")

    assert set(algorithms(tmp_path / "out.gguf").values()) == {"hqq", "none"}


@pytest.mark.parametrize(("name", "gain"), [("imatrix", 1.0), ("signround", 0.7)])
def test_calibrated_algorithms(calibrated, tiny_llama, kl, tmp_path, name, gain):
    options = {"format": "Q3_K", "algorithm": name, "fold": False, **calibrated}
    fewbits.quantize(tiny_llama, tmp_path / "out.gguf", **options)
    fewbits.quantize(tiny_llama, tmp_path / "fast.gguf", format="Q3_K")

    # Where an algorithm loses on held-out text it is undone, and the plan still names it.
    assert set(algorithms(tmp_path / "out.gguf").values()) == {name, "none"}
    losses = [kl(tmp_path / f, tiny_llama) for f in ("out.gguf", "fast.gguf")]
    assert losses[0] < gain * losses[1]


def test_formats_may_be_calibrated_and_codes_not(calibrated, tiny_llama, tmp_path):
    made = fewbits.quantize(tiny_llama, tmp_path / "out.gguf", size="1.3MB", algorithm="hqq", **calibrated)

    assert set(algorithms(tmp_path / "out.gguf").values()) == {"hqq", "none"}
    assert 0.97 * 1_300_000 < made.size <= 1_300_000
    assert made.predicted_kl is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algorithm": "gptq"}, "--algorithm gptq needs calibration: found --effort fast"),
        ({"algorithm": "magic"}, "unknown algorithm: found 'magic'; allowed: rtn, hqq"),
        ({"algorithm": "magic", "effort": "balanced"}, "unknown algorithm"),
        ({"algorithm": "hqq", "max_kl": 0.1, "effort": "balanced"}, "--max-kl has no use with --algorithm"),
        ({"algorithm": "hqq", "imatrix": "some.gguf"}, "--imatrix is for rounding by importance"),
    ],
)
def test_what_makes_no_sense_is_refused(tiny_llama, tmp_path, options, message):
    with pytest.raises(FewbitsError, match=message):
        fewbits.quantize(tiny_llama, tmp_path / "out.gguf", **options)
    assert list(tmp_path.iterdir()) == []


def test_like_names_its_algorithms_already(tiny_llama, tmp_path):
    fewbits.quantize(tiny_llama, tmp_path / "first.gguf", format="Q4_0")

    with pytest.raises(PlanError, match="no use with --like"):
        fewbits.quantize(tiny_llama, tmp_path / "out.gguf", like=tmp_path / "first.gguf", algorithm="hqq")


def test_the_command_line(tiny_llama, tmp_path):
    from typer.testing import CliRunner

    from fewbits.cli.main import app

    command = [
        "quantize",
        str(tiny_llama),
        str(tmp_path / "out.gguf"),
        "--format",
        "Q4_0",
        "--algorithm",
        "hqq",
    ]
    made = CliRunner().invoke(app, command)
    assert made.exit_code == 0, made.output
    assert set(algorithms(tmp_path / "out.gguf").values()) == {"hqq", "none"}

    planned = CliRunner().invoke(app, ["plan", str(tiny_llama), "--algorithm", "hqq", "--json"])
    assert "hqq" in planned.stdout
    refused = CliRunner().invoke(app, ["plan", str(tiny_llama), "--frontier", "--algorithm", "hqq"])
    assert refused.exit_code != 0
