"""Outputs that are folders: written in place, resumed, replaced and checked like files."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from interruption import Killed, interrupted, leftovers

import fewbits
from fewbits.checkpoint.source import open_checkpoint, open_stored
from fewbits.errors import CheckpointError, OutputError, ResumeError, VerificationError
from fewbits.export.hugging_face import safetensors_files
from fewbits.pipeline import verify
from fewbits.pipeline.journal import Journal, journal_path, part_path, replaced_path

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

UP = "model.layers.1.mlp.up_proj.weight"


def quantize(source, output, **options):
    options.setdefault("format", "INT3_G64")
    return fewbits.quantize(source, output, to="compressed-tensors", **options)


def digest(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def left_behind(source, output, monkeypatch, after=9):
    with interrupted(monkeypatch, after):
        quantize(source, output)
    return output


@pytest.mark.parametrize("after", [1, 12, 29])
def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(tiny_llama, tmp_path, monkeypatch, after):
    quantize(tiny_llama, tmp_path / "alone")
    output = left_behind(tiny_llama, tmp_path / "out", monkeypatch, after)
    assert not output.exists()

    assert quantize(tiny_llama, output).resumed == after
    assert digest(output) == digest(tmp_path / "alone")
    assert leftovers(tmp_path) == []


def test_a_killed_process_is_resumed_by_the_same_command(tiny_llama, tmp_path):
    quantize(tiny_llama, tmp_path / "alone")
    output = tmp_path / "out"
    command = [
        sys.executable, "-m", "fewbits", "quantize", tiny_llama, output, "--to", "compressed-tensors",
        "--format", "INT3_G64", "--threads", "1",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if journal_path(output).exists() and journal_path(output).read_bytes().count(b"\n") > 3:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    process.communicate()
    assert not output.exists(), "finished before it could be killed"

    subprocess.run(command, check=True, capture_output=True)

    assert digest(output) == digest(tmp_path / "alone")
    assert leftovers(tmp_path) == []


def test_threads_do_not_change_a_byte(tiny_llama, tmp_path):
    for threads in (1, 3):
        quantize(tiny_llama, tmp_path / f"{threads}", threads=threads)

    assert digest(tmp_path / "1") == digest(tmp_path / "3")


def test_the_size_is_predicted_exactly(tiny_llama, tmp_path):
    plan = fewbits.plan(tiny_llama, to="compressed-tensors", format="INT3_G64")
    made = quantize(tiny_llama, tmp_path / "out")

    assert plan.size == made.size == sum(p.stat().st_size for p in (tmp_path / "out").iterdir())


@pytest.mark.parametrize("pins", [(), ("model.layers.0.*=INT3_G16_SYM",)])
@pytest.mark.parametrize("size", range(1_250_000, 2_000_001, 150_000))
def test_a_size_is_never_exceeded(tiny_llama, size, pins):
    plan = fewbits.plan(tiny_llama, to="compressed-tensors", size=size, pins=pins)

    assert plan.size <= size
    again = fewbits.plan(tiny_llama, to="compressed-tensors", size=plan.size + 16, pins=pins)
    assert again.tensors == plan.tensors


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda part: os.truncate(part / "model.safetensors", 5000), "5,000 bytes"),
        (lambda part: (part / "model.safetensors").unlink(), "0 bytes"),
        (
            lambda part: (part / "model.safetensors").write_bytes(
                bytes((part / "model.safetensors").stat().st_size)
            ),
            "differ",
        ),
    ],
)
def test_damaged_work_is_refused_with_the_way_out(tiny_llama, tmp_path, monkeypatch, damage, named):
    output = left_behind(tiny_llama, tmp_path / "out", monkeypatch)
    damage(part_path(output))

    with pytest.raises(ResumeError, match=f"{named}.*Delete"):
        quantize(tiny_llama, output)
    journal_path(output).unlink()
    assert quantize(tiny_llama, output).resumed == 0


def test_work_of_another_job_is_not_thrown_away_silently(tiny_llama, tmp_path, monkeypatch):
    output = left_behind(tiny_llama, tmp_path / "out", monkeypatch)
    (part_path(output) / "stray").write_text("of an older version")

    with pytest.raises(ResumeError, match="another"):
        quantize(tiny_llama, output, format="INT8_G64")
    assert quantize(tiny_llama, output, format="INT8_G64", force=True).resumed == 0
    assert not (output / "stray").exists()


def test_unfinished_work_of_the_other_kind_is_in_the_way(tiny_llama, tmp_path):
    part_path(tmp_path / "out").write_text("x")

    with pytest.raises(OutputError, match=r"in the way.*a file"):
        quantize(tiny_llama, tmp_path / "out")


def test_two_runs_do_not_write_the_same_output(tiny_llama, tmp_path):
    with Journal(tmp_path / "out", "x", folder=True), pytest.raises(OutputError, match="another fewbits"):
        quantize(tiny_llama, tmp_path / "out")


def test_an_existing_output_is_replaced_with_force_only(tiny_llama, tmp_path):
    quantize(tiny_llama, tmp_path / "out")
    before = digest(tmp_path / "out")

    with pytest.raises(OutputError, match="--force"):
        quantize(tiny_llama, tmp_path / "out", format="INT4_G64")
    assert digest(tmp_path / "out") == before
    quantize(tiny_llama, tmp_path / "out", format="INT4_G64", force=True)
    assert open_checkpoint(tmp_path / "out").tensors[UP].dtype == "INT4_G64"
    assert leftovers(tmp_path) == []


def test_nothing_that_fewbits_did_not_write_is_replaced(tiny_llama, tmp_path):
    shutil.copytree(tiny_llama, tmp_path / "source")
    quantize(tiny_llama, tmp_path / "out")
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    (tmp_path / "file").write_text("precious")
    before = digest(tmp_path)

    with pytest.raises(OutputError, match=r"didn't write.*thesis\.txt"):
        quantize(tiny_llama, tmp_path / "out", force=True)
    with pytest.raises(OutputError, match=r"didn't write.*config\.json"):
        quantize(tmp_path / "source", tmp_path / "source", force=True)
    with pytest.raises(OutputError, match="is a file"):
        quantize(tiny_llama, tmp_path / "file", force=True)
    assert digest(tmp_path) == before
    (tmp_path / "empty").mkdir()
    quantize(tiny_llama, tmp_path / "empty", force=True)


def test_killed_while_an_old_folder_is_replaced(tiny_llama, tmp_path, monkeypatch):
    output = tmp_path / "out"
    quantize(tiny_llama, tmp_path / "alone")
    quantize(tiny_llama, output, format="INT8_G64")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            quantize(tiny_llama, output, force=True)
    assert replaced_path(output).exists()
    assert not output.exists()

    assert quantize(tiny_llama, output, force=True).resumed == 29
    assert digest(output) == digest(tmp_path / "alone")
    assert leftovers(tmp_path) == []


def test_large_models_are_cut_into_files_with_an_index(tiny_llama, tmp_path, monkeypatch):
    import torch
    import transformers

    quantize(tiny_llama, tmp_path / "one")
    monkeypatch.setattr(safetensors_files, "SHARD_BYTES", 300_000)
    quantize(tiny_llama, tmp_path / "several")

    names = sorted(p.name for p in (tmp_path / "several").glob("*.safetensors"))
    assert len(names) > 2
    assert names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    index = json.loads((tmp_path / "several" / "model.safetensors.index.json").read_text())
    one, several = (open_stored(tmp_path / d).tensors for d in ("one", "several"))
    assert set(index["weight_map"]) == set(one) == set(several)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in one.values())
    for name, tensor in one.items():
        assert np.array_equal(tensor.read(), several[name].read()), name
    logits = [
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / d, dtype=torch.float32)(
            torch.tensor([[1, 2, 3]])
        ).logits
        for d in ("one", "several")
    ]
    assert torch.equal(*logits)
    monkeypatch.undo()
    quantize(tiny_llama, tmp_path / "several", force=True)
    assert digest(tmp_path / "one") == digest(tmp_path / "several")


@pytest.mark.parametrize("part", ["weight_packed", "weight_zero_point", "weight_scale", "weight_shape"])
def test_what_reads_back_differently_does_not_get_the_name(tiny_llama, tmp_path, monkeypatch, part):
    def corrupt(job, journal, progress, threads):
        region = job.layout.parts[UP][part]
        journal.write(b"\x55" * 8, region.offset, region.file)
        verify.verify_output(job, journal, progress, threads)

    monkeypatch.setattr("fewbits.pipeline.quantize.verify_output", corrupt)
    with pytest.raises(VerificationError, match=r"layers\.1\.mlp\.up_proj"):
        quantize(tiny_llama, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_side_files_are_read_back_too(tiny_llama, tmp_path, monkeypatch):
    def corrupt(job, journal, progress, threads):
        (part_path(journal.output) / "tokenizer.json").write_text("{}")
        verify.verify_output(job, journal, progress, threads)

    monkeypatch.setattr("fewbits.pipeline.quantize.verify_output", corrupt)
    with pytest.raises(VerificationError, match=r"tokenizer\.json"):
        quantize(tiny_llama, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_finite_leave_nothing_behind(tiny_llama, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(tiny_llama, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors[UP][3, 5:8] = torch.nan
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(CheckpointError, match=r"up_proj\.weight.*3 NaN"):
        quantize(broken, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken"]


def test_a_source_without_config_is_refused(tiny_llama, tmp_path):
    bare = shutil.copytree(tiny_llama, tmp_path / "bare")
    (bare / "config.json").unlink()

    with pytest.raises(CheckpointError, match=r"no config\.json"):
        quantize(bare, tmp_path / "out")


def test_a_full_disk_is_found_before_work_starts(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))

    with pytest.raises(OutputError, match="room"):
        quantize(tiny_llama, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_dry_run_predicts_the_size_and_leaves_nothing(tiny_llama, tmp_path):
    predicted = fewbits.dry_run(tiny_llama, tmp_path / "out", to="compressed-tensors", format="INT3_G64")

    assert list(tmp_path.iterdir()) == []
    assert predicted.ran is True
    assert 0 < predicted.tried_size < predicted.size
    assert quantize(tiny_llama, tmp_path / "out").size == predicted.size
