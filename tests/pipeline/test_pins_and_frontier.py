"""What calibrated plans say of pinned formats, and of all sizes at once."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import fewbits
from fewbits.checkpoint.checkpoint import LazyTensor
from fewbits.checkpoint.source import open_checkpoint
from fewbits.errors import BudgetError, PlanError
from fewbits.export.exporter import OutputTensor
from fewbits.export.registry import get_exporter
from fewbits.pipeline.calibrated_plan import priced_options
from fewbits.planning.allocation import gaussian_error

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

EVERYTHING = ["*.weight={}"]


@pytest.fixture(scope="module", autouse=True)
def _one_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWBITS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def planned(tiny_llama, sample_text):
    def plan(**options):
        return fewbits.plan(tiny_llama, effort="balanced", calibration=sample_text, threads=2, **options)

    return plan


@pytest.fixture(scope="module")
def points(tiny_llama, sample_text):
    return fewbits.frontier(tiny_llama, points=6, calibration=sample_text, threads=2)


def test_a_pin_to_a_format_that_no_plan_would_choose_has_a_price(
    planned, tiny_llama, sample_text, kl, tmp_path
):
    beaten, better = (planned(bits=16, pins=[f"*.weight={name}"]) for name in ("Q4_0", "IQ4_NL"))
    assert {c.format for n, c in beaten.tensors.items() if "norm" not in n} == {"Q4_0"}
    assert beaten.predicted_kl > 1.05 * better.predicted_kl

    (tmp_path / "plan.json").write_text(beaten.to_json())
    options = {"plan": tmp_path / "plan.json", "effort": "balanced", "calibration": sample_text}
    fewbits.quantize(tiny_llama, tmp_path / "out.gguf", threads=2, **options)
    measured = kl(tmp_path / "out.gguf", tiny_llama)
    assert 0.5 * measured < beaten.predicted_kl < 2 * measured


def test_pins_to_floating_point_have_prices(planned):
    pins = {name: ["*ffn*=Q8_0", f"*attn*={name}", f"token_embd={name}"] for name in ("F32", "BF16", "F16")}
    found = {name: planned(bits=32, pins=pins[name]).predicted_kl for name in pins}
    # The source is bfloat16, but its rescaled columns aren't; of the two F16 has more digits for them.
    assert found["F32"] < found["F16"] < found["BF16"] < 1.1 * found["F32"]


def test_a_pin_to_what_can_t_be_is_refused_with_what_can(planned):
    with pytest.raises(PlanError, match=r"attn_q\.weight can't be pinned .*INT4_G128.*allowed: .*Q4_K"):
        planned(bits=5, pins=["blk.0.attn_q=INT4_G128"])


def test_pins_have_no_influence_on_the_prices_of_others(planned, tmp_path, monkeypatch):
    monkeypatch.setenv("FEWBITS_CACHE", str(tmp_path / "first"))
    alone = planned(bits=4.6)
    monkeypatch.setenv("FEWBITS_CACHE", str(tmp_path / "second"))
    pinned = planned(bits=4.6, pins=["attn_k=Q4_0"])
    after = planned(bits=4.6)
    assert alone == after
    assert pinned == planned(bits=4.6, pins=["attn_k=Q4_0"])
    assert pinned.tensors["blk.0.attn_k.weight"].format == "Q4_0"


def test_with_pins_a_size_is_still_kept_by_effort_fast(tiny_llama, tmp_path):
    made = fewbits.quantize(tiny_llama, tmp_path / "a.gguf", size="1.3MB", pins=["token_embd=F16"])
    assert made.size <= 1_300_000
    assert open_checkpoint(tmp_path / "a.gguf").tensors["token_embd.weight"].dtype == "F16"
    by_bits = fewbits.plan(tiny_llama, bits=6, pins=["token_embd=F16"])
    assert by_bits.bits_per_weight <= 6
    with pytest.raises(BudgetError, match="at least"):
        fewbits.plan(tiny_llama, size="1MB", pins=["ffn_up=F32"])


class Zeros(LazyTensor):
    def __init__(self, name, *shape):
        self.name, self.shape, self.dtype = name, shape, "F32"

    def rows(self, start, stop):
        return np.zeros((stop - start, self.shape[-1]), np.float32)


def test_a_pinned_tensor_without_statistics_gets_a_price_by_its_format_s_error():
    tensors = [OutputTensor(name, Zeros(name, 8, 256), "linear", True) for name in ("a", "b")]
    prices = {"a": {"Q4_K": 0.004, "Q6_K": 0.0003, "F16": 1e-9}}
    options = priced_options(tensors, get_exporter("gguf"), prices, {"b": "Q4_0"})
    (option,) = options["b"]
    assert option.name == "Q4_0"
    assert option.price == pytest.approx(0.004 * gaussian_error("Q4_0") / gaussian_error("Q4_K"))
    assert {o.name for o in options["a"]} == {"Q4_K", "Q6_K", "F16"}
    (option,) = priced_options(tensors, get_exporter("gguf"), prices, {"b": "F32"})["b"]
    assert option.price == 0


def test_a_frontier_is_of_whole_files(points, tiny_llama, sample_text, tmp_path):
    sizes = np.array([point.bytes for point in points])
    losses = np.array([point.predicted_kl for point in points])
    assert len(points) == 6
    assert (np.diff(sizes) > 0).all()
    assert (np.diff(losses) < 0).all()
    for number in (0, 2):
        point = points[number]
        made = fewbits.quantize(
            tiny_llama, tmp_path / f"{number}.gguf", size=point.bytes, effort="balanced",
            calibration=sample_text, threads=2,
        )  # fmt: skip
        assert 0.99 * point.bytes < made.size <= point.bytes
        assert made.bits_per_weight == pytest.approx(point.bits_per_weight, rel=0.01)
        assert made.predicted_kl == pytest.approx(point.predicted_kl, rel=0.1)
        assert sum(point.formats.values()) == sum(n for f, n in made.formats.items() if f != "F32")
    with pytest.raises(BudgetError):
        fewbits.plan(tiny_llama, size=points[0].bytes - 1000, effort="balanced", calibration=sample_text)


def test_a_frontier_keeps_pins(points, tiny_llama, sample_text):
    pinned = fewbits.frontier(
        tiny_llama, points=3, calibration=sample_text, threads=2, pins=["attn_v=Q8_0", "ffn_down=Q4_0"]
    )
    for point in pinned:
        assert point.formats["Q4_0"] == 3
        assert point.formats["Q8_0"] >= 3
    assert pinned[0].bytes > points[0].bytes
    assert pinned[-1].predicted_kl > points[-1].predicted_kl


def test_a_frontier_that_can_t_be_is_refused(tiny_llama):
    with pytest.raises(PlanError, match=r"needs to know the model.*--effort balanced"):
        fewbits.frontier(tiny_llama, effort="fast")
    with pytest.raises(PlanError, match="2 or more"):
        fewbits.frontier(tiny_llama, points=1)


def run(*arguments, status=0):
    done = subprocess.run(
        [sys.executable, "-m", "fewbits", *map(str, arguments)],
        capture_output=True, text=True, timeout=500, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_the_command_prints_a_table_or_a_list(points, tiny_llama, sample_text, tmp_path):
    arguments = ["plan", tiny_llama, "--frontier", "--points", 6, "--calibration", sample_text]
    done = run(*arguments, "-o", tmp_path / "frontier.json")
    head, *rows, note = done.stdout.splitlines()
    assert head.split()[:2] == ["size", "bytes"]
    assert [int(row.split()[2].replace(",", "")) for row in rows] == [point.bytes for point in points]
    assert "Predicted KL" in note
    assert "tokens in whole blocks where 24,576 were asked for" in done.stderr

    said = run(*arguments, "--json").stdout
    assert said.count("\n") == 1
    assert json.loads(said) == json.loads((tmp_path / "frontier.json").read_text())
    assert [point["bytes"] for point in json.loads(said)] == [point.bytes for point in points]
    assert set(json.loads(said)[0]) == {"bytes", "bits_per_weight", "predicted_kl", "formats"}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--frontier", "--effort", "fast"], "--effort balanced"),
        (["--frontier", "--size", "1MB"], "--size"),
        (["--frontier", "--points", "1"], "2 or more"),
        (["--points", "5"], "--frontier"),
    ],
)
def test_options_that_don_t_go_together_are_refused(tiny_llama, arguments, named):
    assert named in run("plan", tiny_llama, *arguments, status=2).stderr
