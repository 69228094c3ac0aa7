"""Containers that their runtime's library writes: quantized, converted, compared, described, resumed, replaced."""

import json

import numpy as np
import pytest
from interruption import interrupted, leftovers

import fewbits
from fewbits.checkpoint.source import open_checkpoint
from fewbits.errors import (
    ArchitectureError,
    CheckpointError,
    ExportError,
    FormatError,
    MissingExtraError,
    OutputError,
    PlanError,
    ResumeError,
    VerificationError,
)
from fewbits.export import converters
from fewbits.export.registry import get_exporter
from npy_converter import NpyConverter

DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(autouse=True)
def _known(monkeypatch):
    monkeypatch.setitem(converters._CONVERTERS, "npy", ("npy_converter", "NpyConverter"))


def make(source, output, **options):
    return fewbits.quantize(source, output, to="npy", **options)


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_model_is_quantized_converted_and_described(tiny_llama, tmp_path):
    result = make(tiny_llama, tmp_path / "out")
    fewbits.quantize(tiny_llama, tmp_path / "direct", to="compressed-tensors", format="INT4_G64_SYM")

    assert leftovers(tmp_path) == []
    assert result.size == sum(len(data) for data in files(tmp_path / "out").values())
    assert result.formats == {"INT4_G64_SYM": 21, "BF16": 8}
    written = NpyConverter().weights(tmp_path / "out")
    direct = open_checkpoint(tmp_path / "direct").tensors
    assert all(np.array_equal(written[name].read(), t.read()) for name, t in direct.items())

    seen, plain = fewbits.inspect(tmp_path / "out"), fewbits.inspect(tmp_path / "direct")
    assert seen.container == "npy"
    assert (seen.parameters, seen.nbytes, seen.formats) == (plain.parameters, plain.nbytes, plain.formats)
    assert {t.name: t for t in seen.tensors} == {t.name: t for t in plain.tensors}
    assert seen.architecture == "LlamaForCausalLM"
    assert seen.provenance["fewbits.plan"][DOWN]["format"] == "INT4_G64_SYM"
    assert json.loads(seen.to_json())["container"] == "npy"


def test_a_budget_and_a_plan_like_an_artifacts(tiny_llama, tmp_path):
    made = make(tiny_llama, tmp_path / "out", bits=7.0)
    assert made.bits_per_weight <= 7.0
    assert made.formats == {"INT4_G32_SYM": 21, "BF16": 8}

    make(tiny_llama, tmp_path / "again", like=tmp_path / "out")
    assert files(tmp_path / "again") == files(tmp_path / "out")
    with pytest.raises(PlanError, match="INT3_G64"):
        make(tiny_llama, tmp_path / "no", format="INT3_G64")


@pytest.mark.parametrize("after", [1, 29])
def test_a_run_killed_while_quantizing_goes_on(tiny_llama, tmp_path, monkeypatch, after):
    make(tiny_llama, tmp_path / "alone")
    with interrupted(monkeypatch, after):
        make(tiny_llama, tmp_path / "out")

    assert make(tiny_llama, tmp_path / "out").resumed == after
    assert files(tmp_path / "out") == files(tmp_path / "alone")
    assert leftovers(tmp_path) == []


def test_a_run_that_failed_while_converting_keeps_what_is_quantized(tiny_llama, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(NpyConverter, "fails", DOWN)
        with pytest.raises(ExportError, match="can't write"):
            make(tiny_llama, tmp_path / "out")
    assert leftovers(tmp_path) == ["out.fewbits-conversion", "out.fewbits-quantized"]

    with pytest.raises(ResumeError, match="another source, plan"):
        make(tiny_llama, tmp_path / "out", format="INT4_G32_SYM")
    result = make(tiny_llama, tmp_path / "out")
    assert result.resumed == 29
    assert leftovers(tmp_path) == []

    with pytest.raises(OutputError, match="exists"):
        make(tiny_llama, tmp_path / "out")


def test_force_discards_another_jobs_work_and_replaces_what_fewbits_made(tiny_llama, tmp_path, monkeypatch):
    make(tiny_llama, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(NpyConverter, "fails", DOWN)
        with pytest.raises(ExportError):
            make(tiny_llama, tmp_path / "out", force=True)
    assert fewbits.inspect(tmp_path / "out").formats[0].format == "INT4_G64_SYM"  # untouched

    make(tiny_llama, tmp_path / "out", format="INT4_G32_SYM", force=True)
    assert "INT4_G32_SYM" in {f.format for f in fewbits.inspect(tmp_path / "out").formats}
    assert leftovers(tmp_path) == []

    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"didn't write: found mine\.txt"):
        make(tiny_llama, tmp_path / "out", force=True)


def test_weights_that_are_not_those_of_the_directory_get_no_name(tiny_llama, tmp_path, monkeypatch):
    def changed(_, numbers, name):
        if name == DOWN:
            numbers[200, 7] = np.nextafter(numbers[200, 7], np.float32(9))
        return numbers

    monkeypatch.setattr(NpyConverter, "changed", changed)
    with pytest.raises(VerificationError, match=rf"{DOWN}.*row 200, column 7"):
        make(tiny_llama, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.fewbits-part").exists()

    monkeypatch.setattr(NpyConverter, "weights", lambda self, output: {})
    with pytest.raises(VerificationError, match="found nothing"):
        make(tiny_llama, tmp_path / "out")


def test_what_cannot_work_is_refused_before_work_starts(tiny_llama, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(NpyConverter, "packages", ("numpy", "nosuchpackage.inner"))
        with pytest.raises(MissingExtraError, match=r"nosuchpackage.*fewbits\[npy\]"):
            make(tiny_llama, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(NpyConverter, "largest", 300)
        with pytest.raises(ArchitectureError, match="no place"):
            make(tiny_llama, tmp_path / "out")
    with pytest.raises(FormatError, match=r"allowed: gguf, .*npy"):
        fewbits.quantize(tiny_llama, tmp_path / "out", to="nosuch")
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_converts_one_block(tiny_llama, tmp_path, monkeypatch):
    predicted = fewbits.dry_run(tiny_llama, tmp_path / "out", to="npy")

    assert predicted.tried == 11
    assert predicted.disk_needed == 2 * predicted.size
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(NpyConverter, "fails", DOWN.replace("layers.1", "layers.0"))
    with pytest.raises(ExportError):
        fewbits.dry_run(tiny_llama, tmp_path / "out", to="npy")


def test_such_a_folder_is_no_source(tiny_llama, tmp_path):
    make(tiny_llama, tmp_path / "out")
    with pytest.raises(CheckpointError, match="converted for npy"):
        fewbits.quantize(tmp_path / "out", tmp_path / "out.gguf")
    (tmp_path / "out" / "fewbits.json").write_text("{}")
    with pytest.raises(CheckpointError, match="can't be read"):
        fewbits.inspect(tmp_path / "out")


def test_the_converters_directory_is_known_by_its_name():
    assert get_exporter("NPY").formats == ("INT8_G32_SYM", "INT4_G64_SYM", "INT4_G32_SYM")
    assert converters.find_converter("gguf") is None
