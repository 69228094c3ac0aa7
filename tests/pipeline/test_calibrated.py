"""The calibrated effort, from text to file, on a model small enough to calibrate in seconds."""

import hashlib
import json

import numpy as np
import pytest

import fewbits
from fewbits.checkpoint.source import open_checkpoint
from fewbits.errors import PlanError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def calibrated(tiny_llama, sample_text, few_tokens):
    """A function that quantizes the tiny model with calibration."""
    del few_tokens  # for what it sets

    def quantize(output, source=tiny_llama, **options):
        options.setdefault("effort", "balanced")
        return fewbits.quantize(source, output, calibration=sample_text, threads=2, **options)

    return quantize


@pytest.mark.parametrize("name", ["Q4_0", "Q3_K"])
def test_calibration_lowers_the_loss_at_the_same_bytes(calibrated, tiny_llama, kl, tmp_path, name):
    fast = fewbits.quantize(tiny_llama, tmp_path / "fast.gguf", format=name)
    made = calibrated(tmp_path / "balanced.gguf", format=name)

    formats = [open_checkpoint(tmp_path / f).tensors for f in ("fast.gguf", "balanced.gguf")]
    assert [t.dtype for t in formats[0].values()] == [t.dtype for t in formats[1].values()]
    assert abs(made.size - fast.size) < 4096  # the plan in the header says another algorithm
    before, after = (kl(tmp_path / f, tiny_llama) for f in ("fast.gguf", "balanced.gguf"))
    assert after < 0.8 * before


def test_nothing_is_calibrated_where_nothing_is_quantized(calibrated, tmp_path, monkeypatch):
    monkeypatch.setattr("fewbits.pipeline.calibrate.calibrate", None)
    calibrated(tmp_path / "out.gguf", format="BF16", pins=["attn_v=F16"])

    assert {t.dtype for t in open_checkpoint(tmp_path / "out.gguf").tensors.values()} == {
        "BF16",
        "F16",
        "F32",
    }


def test_size_is_kept_and_filled(calibrated, tmp_path):
    made = calibrated(tmp_path / "out.gguf", size="1.3MB")

    assert 0.97 * 1_300_000 < made.size <= 1_300_000
    assert 0 < made.predicted_kl < 1


def test_bits_and_max_kl_are_kept(calibrated, tmp_path):
    by_bits = calibrated(tmp_path / "bits.gguf", bits=5.0)
    by_loss = calibrated(tmp_path / "loss.gguf", max_kl=by_bits.predicted_kl)

    assert by_bits.bits_per_weight <= 5.0
    assert by_loss.predicted_kl <= by_bits.predicted_kl
    assert by_loss.size <= by_bits.size + 4096


def test_pins_are_kept(calibrated, tmp_path):
    calibrated(tmp_path / "out.gguf", bits=4.8, pins=["attn_v=Q8_0"])

    tensors = open_checkpoint(tmp_path / "out.gguf").tensors
    assert {t.dtype for n, t in tensors.items() if "attn_v" in n} == {"Q8_0"}


def test_the_artifact_names_its_calibration_and_can_be_made_again(calibrated, sample_text, tmp_path):
    calibrated(tmp_path / "first.gguf", size="1.2MB")
    calibrated(tmp_path / "again.gguf", like=tmp_path / "first.gguf")

    metadata = open_checkpoint(tmp_path / "first.gguf").metadata
    assert metadata["fewbits.calibration.hash"] == hashlib.sha256(sample_text.read_bytes()).hexdigest()
    assert (tmp_path / "first.gguf").read_bytes() == (tmp_path / "again.gguf").read_bytes()


def test_channels_are_rescaled_unless_that_is_refused(calibrated, tiny_llama, kl, tmp_path):
    calibrated(tmp_path / "folded.gguf", format="Q4_0")
    calibrated(tmp_path / "plain.gguf", format="Q4_0", fold=False)
    calibrated(tmp_path / "again.gguf", like=tmp_path / "plain.gguf")

    made = {n: open_checkpoint(tmp_path / f"{n}.gguf") for n in ("folded", "plain", "again")}
    norms = {n: c.tensors["blk.0.attn_norm.weight"].read() for n, c in made.items()}
    assert not np.array_equal(norms["folded"], norms["plain"])
    assert np.array_equal(norms["again"], norms["plain"])
    assert "fewbits.folds.hash" in made["folded"].metadata
    assert "fewbits.folds.hash" not in made["plain"].metadata
    assert kl(tmp_path / "folded.gguf", tiny_llama) < kl(tmp_path / "plain.gguf", tiny_llama)


def test_evaluating_on_the_calibration_text_is_refused(calibrated, tiny_llama, sample_text, tmp_path):
    calibrated(tmp_path / "out.gguf", format="Q4_0")

    with pytest.raises(fewbits.FewbitsError, match="calibrat"):
        fewbits.evaluate(tmp_path / "out.gguf", tiny_llama, text=sample_text, context=64, chunks=2)


def test_a_gguf_source_gives_the_same_weights_as_its_directory(calibrated, tiny_llama, tmp_path):
    fewbits.quantize(tiny_llama, tmp_path / "source.gguf", format="BF16")
    calibrated(tmp_path / "a.gguf", format="Q4_0")
    calibrated(tmp_path / "b.gguf", format="Q4_0", source=tmp_path / "source.gguf")

    first, second = (open_checkpoint(tmp_path / f"{n}.gguf").tensors for n in "ab")
    for name, tensor in first.items():
        assert np.array_equal(tensor.read(), second[name].read()), name


def test_the_plan_alone_predicts_what_quantize_makes(calibrated, tiny_llama, sample_text, tmp_path):
    plan = fewbits.plan(tiny_llama, size="1.3MB", effort="balanced", calibration=sample_text)
    (tmp_path / "plan.json").write_text(plan.to_json())
    made = calibrated(tmp_path / "out.gguf", size="1.3MB")
    again = calibrated(tmp_path / "planned.gguf", plan=tmp_path / "plan.json")

    assert plan.size == made.size
    assert plan.predicted_kl == pytest.approx(made.predicted_kl)
    assert json.loads(open_checkpoint(tmp_path / "planned.gguf").metadata["fewbits.plan"]) == json.loads(
        open_checkpoint(tmp_path / "out.gguf").metadata["fewbits.plan"]
    )
    assert again.formats == made.formats


def test_max_kl_needs_calibration(tiny_llama, tmp_path):
    with pytest.raises(PlanError, match="balanced"):
        fewbits.quantize(tiny_llama, tmp_path / "out.gguf", effort="fast", max_kl=0.1)


def test_calibration_lowers_the_loss_of_integers_in_a_directory(calibrated, tiny_llama, kl, tmp_path):
    options = {"to": "compressed-tensors", "format": "INT3_G64"}
    fewbits.quantize(tiny_llama, tmp_path / "fast", **options)
    calibrated(tmp_path / "balanced", **options)
    calibrated(tmp_path / "again", to="compressed-tensors", like=tmp_path / "balanced")

    before, after = (kl(tmp_path / f, tiny_llama) for f in ("fast", "balanced"))
    assert after < 0.7 * before
    for file in (tmp_path / "balanced").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name


def test_fused_layers_get_one_format_by_measured_prices(calibrated, tmp_path):
    made = calibrated(tmp_path / "out", to="compressed-tensors", bits=6.6)

    assert made.bits_per_weight <= 6.6
    assert 0 < made.predicted_kl < 1
    formats = {name: t.dtype for name, t in open_checkpoint(tmp_path / "out").tensors.items()}
    assert len(set(formats.values())) > 2
    for block in range(3):
        for group in (("self_attn.q", "self_attn.k", "self_attn.v"), ("mlp.gate", "mlp.up")):
            assert len({formats[f"model.layers.{block}.{n}_proj.weight"] for n in group}) == 1
