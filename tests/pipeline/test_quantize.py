import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
from interruption import interrupted, leftovers

import fewbits
from fewbits.checkpoint.source import open_checkpoint
from fewbits.errors import BudgetError, CheckpointError, FewbitsError, OutputError, PlanError, ResumeError
from fewbits.export.exporter import WHOLE
from fewbits.pipeline import verify
from fewbits.pipeline.journal import Journal, journal_path, part_path


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_tensor_has_the_format_asked_for_and_is_near_its_source(tiny_llama, tmp_path):
    result = fewbits.quantize(tiny_llama, tmp_path / "out.gguf", format="Q4_K")

    written = open_checkpoint(tmp_path / "out.gguf").tensors
    source = open_checkpoint(tiny_llama).tensors["model.layers.1.mlp.down_proj.weight"].read()
    down = written["blk.1.ffn_down.weight"]
    error = np.linalg.norm(down.read() - source) / np.linalg.norm(source)
    assert down.dtype == "Q4_K"
    assert 0.01 < error < 0.09
    assert written["blk.1.ffn_norm.weight"].dtype == "F32"
    assert result.size == (tmp_path / "out.gguf").stat().st_size
    assert leftovers(tmp_path) == []


def test_norms_are_exact(tiny_llama, tmp_path):
    fewbits.quantize(tiny_llama, tmp_path / "out.gguf", format="Q2_K")

    ours = open_checkpoint(tmp_path / "out.gguf").tensors["blk.0.attn_norm.weight"].read()
    theirs = open_checkpoint(tiny_llama).tensors["model.layers.0.input_layernorm.weight"].read()
    assert np.array_equal(ours.reshape(-1), theirs)


def test_threads_do_not_change_a_byte(tiny_llama, tmp_path):
    for threads in (1, 3):
        fewbits.quantize(tiny_llama, tmp_path / f"{threads}.gguf", format="Q3_K", threads=threads)

    assert digest(tmp_path / "1.gguf") == digest(tmp_path / "3.gguf")


def test_rows_the_block_does_not_divide_fall_back_and_inspect_shows_it(narrow_llama, tmp_path):
    result = fewbits.quantize(narrow_llama, tmp_path / "out.gguf", format="Q4_K")

    assert set(result.fallbacks.values()) == {"Q4_K -> Q5_0"}
    seen = json.loads(json.dumps(fewbits.inspect(tmp_path / "out.gguf"), default=vars))
    assert "Q4_K" in json.dumps(seen["fallbacks"])


@pytest.mark.parametrize("size", ["900KB", "1.5MB", 2_300_000])
def test_size_is_kept(tiny_llama, tmp_path, size):
    result = fewbits.quantize(tiny_llama, tmp_path / "out.gguf", size=size)

    limit = {"900KB": 900_000, "1.5MB": 1_500_000}.get(size, size)
    assert 0.6 * limit < result.size == (tmp_path / "out.gguf").stat().st_size <= limit


def test_a_size_out_of_reach_says_the_smallest(tiny_llama, tmp_path):
    with pytest.raises(BudgetError, match="at least"):
        fewbits.quantize(tiny_llama, tmp_path / "out.gguf", size="10KB")
    assert list(tmp_path.iterdir()) == []


def test_bits_are_kept(tiny_llama, tmp_path):
    result = fewbits.quantize(tiny_llama, tmp_path / "out.gguf", bits=5.0)

    assert 4.4 < result.bits_per_weight <= 5.0


def test_a_plan_can_be_written_edited_and_run(tiny_llama, tmp_path):
    plan = json.loads(fewbits.plan(tiny_llama, format="Q4_0").to_json())
    plan["tensors"]["blk.2.ffn_up.weight"] = "Q8_0"
    (tmp_path / "plan.json").write_text(json.dumps(plan))

    fewbits.quantize(tiny_llama, tmp_path / "out.gguf", plan=tmp_path / "plan.json")

    written = open_checkpoint(tmp_path / "out.gguf").tensors
    assert written["blk.2.ffn_up.weight"].dtype == "Q8_0"
    assert written["blk.1.ffn_up.weight"].dtype == "Q4_0"


def test_the_plan_predicts_the_size_exactly(tiny_llama, tmp_path):
    predicted = fewbits.plan(tiny_llama, bits=4.6)

    assert fewbits.quantize(tiny_llama, tmp_path / "out.gguf", bits=4.6).size == predicted.size


def test_like_makes_the_same_bytes_again(tiny_llama, tmp_path):
    fewbits.quantize(tiny_llama, tmp_path / "first.gguf", size="1.2MB", seed=7)
    fewbits.quantize(tiny_llama, tmp_path / "again.gguf", like=tmp_path / "first.gguf")

    assert digest(tmp_path / "first.gguf") == digest(tmp_path / "again.gguf")


def test_like_refuses_a_file_that_fewbits_did_not_make(tiny_llama, tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "llama")
    writer.add_tensor("x.weight", np.ones((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    with pytest.raises(PlanError, match="how it was made"):
        fewbits.quantize(tiny_llama, tmp_path / "out.gguf", like=tmp_path / "other.gguf")


def test_the_artifact_says_how_it_was_made(tiny_llama, tmp_path):
    made = fewbits.quantize(tiny_llama, tmp_path / "out.gguf", format="Q5_K", seed=3)

    metadata = open_checkpoint(tmp_path / "out.gguf").metadata
    assert metadata["fewbits.source.hash"] == made.source_hash
    assert metadata["fewbits.source.name"] == "tiny-llama"
    assert metadata["fewbits.seed"] == 3
    assert metadata["fewbits.version"] == fewbits.__version__
    assert json.loads(metadata["fewbits.plan"])["blk.0.attn_q.weight"]["format"] == "Q5_K"


def test_gguf_to_gguf_copies_what_already_has_the_format(tiny_llama, tmp_path):
    fewbits.quantize(tiny_llama, tmp_path / "a.gguf", format="Q4_K")
    fewbits.quantize(tmp_path / "a.gguf", tmp_path / "b.gguf", format="Q4_K")

    first, second = open_checkpoint(tmp_path / "a.gguf").tensors, open_checkpoint(tmp_path / "b.gguf").tensors
    rows = first["blk.0.attn_q.weight"].matrix[0]
    for name in ("blk.0.attn_q.weight", "token_embd.weight"):
        assert np.array_equal(first[name].raw(0, rows), second[name].raw(0, rows))


def test_a_quantized_source_is_warned_of(tiny_llama, tmp_path):
    fewbits.quantize(tiny_llama, tmp_path / "a.gguf", format="Q4_0")

    result = fewbits.quantize(tmp_path / "a.gguf", tmp_path / "b.gguf", format="Q8_0")
    assert any("Q4_0" in warning for warning in result.warnings)


def test_an_existing_output_is_kept_without_force(tiny_llama, tmp_path):
    (tmp_path / "out.gguf").write_text("precious")

    with pytest.raises(OutputError, match="--force"):
        fewbits.quantize(tiny_llama, tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").read_text() == "precious"
    fewbits.quantize(tiny_llama, tmp_path / "out.gguf", format="Q8_0", force=True)
    assert (tmp_path / "out.gguf").read_bytes()[:4] == b"GGUF"


def test_a_missing_folder_is_named(tiny_llama, tmp_path):
    with pytest.raises(OutputError, match="nowhere"):
        fewbits.quantize(tiny_llama, tmp_path / "nowhere" / "out.gguf")


def test_a_full_disk_is_found_before_work_starts(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))

    with pytest.raises(OutputError, match="room"):
        fewbits.quantize(tiny_llama, tmp_path / "out.gguf")
    assert list(tmp_path.iterdir()) == []


def test_too_little_memory_is_refused_with_what_is_needed(tiny_llama, tmp_path):
    with pytest.raises(FewbitsError, match="at least"):
        fewbits.quantize(tiny_llama, tmp_path / "out.gguf", memory="1MB")


def test_two_goals_are_refused(tiny_llama, tmp_path):
    with pytest.raises(PlanError, match="--bits and --size"):
        fewbits.quantize(tiny_llama, tmp_path / "out.gguf", bits=4, size="1MB")


def test_an_unknown_effort_is_refused(tiny_llama, tmp_path):
    with pytest.raises(FewbitsError, match="balanced"):
        fewbits.quantize(tiny_llama, tmp_path / "out.gguf", effort="extreme")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named_and_counted(tiny_llama, tmp_path, value):
    import torch
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(tiny_llama, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5:8] = torch.tensor(value, dtype=torch.bfloat16)
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(
        CheckpointError, match=r"blk\.1\.ffn_up\.weight.*3 " + ("NaN" if np.isnan(value) else "inf")
    ):
        fewbits.quantize(broken, tmp_path / "out.gguf", format="Q4_0")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken"]


@pytest.mark.parametrize("after", [1, 9, 29])
def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(tiny_llama, tmp_path, monkeypatch, after):
    fewbits.quantize(tiny_llama, tmp_path / "alone.gguf", format="Q4_0")
    with interrupted(monkeypatch, after):
        fewbits.quantize(tiny_llama, tmp_path / "out.gguf", format="Q4_0")
    assert not (tmp_path / "out.gguf").exists()

    result = fewbits.quantize(tiny_llama, tmp_path / "out.gguf", format="Q4_0")

    assert result.resumed == after
    assert digest(tmp_path / "out.gguf") == digest(tmp_path / "alone.gguf")
    assert leftovers(tmp_path) == []


def left_behind(tiny_llama, tmp_path, monkeypatch):
    with interrupted(monkeypatch, 9):
        fewbits.quantize(tiny_llama, tmp_path / "out.gguf", format="Q4_0")
    return tmp_path / "out.gguf"


def test_a_torn_last_line_is_a_tensor_done_again(tiny_llama, tmp_path, monkeypatch):
    output = left_behind(tiny_llama, tmp_path, monkeypatch)
    text = journal_path(output).read_bytes()
    journal_path(output).write_bytes(text[:-10])

    assert fewbits.quantize(tiny_llama, output, format="Q4_0").resumed == 8


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (
            lambda part, journal: journal.write_bytes(journal.read_bytes().replace(b'"crc32"', b'"crc3"', 1)),
            "entry",
        ),
        (lambda part, journal: journal.write_bytes(b"\x00\xff\n" + journal.read_bytes()), "entry"),
        (lambda part, journal: os.truncate(part, 1000), "bytes"),
        (lambda part, journal: part.write_bytes(bytes(part.stat().st_size)), "differ"),
        (lambda part, journal: part.unlink(), "bytes"),
    ],
)
def test_damaged_work_is_refused_with_the_way_out(tiny_llama, tmp_path, monkeypatch, damage, named):
    output = left_behind(tiny_llama, tmp_path, monkeypatch)
    damage(part_path(output), journal_path(output))

    with pytest.raises(ResumeError, match=f"{named}.*Delete"):
        fewbits.quantize(tiny_llama, output, format="Q4_0")
    journal_path(output).unlink()
    assert fewbits.quantize(tiny_llama, output, format="Q4_0").resumed == 0


def test_work_of_another_job_is_not_thrown_away_silently(tiny_llama, tmp_path, monkeypatch):
    output = left_behind(tiny_llama, tmp_path, monkeypatch)

    with pytest.raises(ResumeError, match="another"):
        fewbits.quantize(tiny_llama, output, format="Q8_0")
    assert fewbits.quantize(tiny_llama, output, format="Q8_0", force=True).resumed == 0


def test_force_goes_on_with_work_of_the_same_job(tiny_llama, tmp_path, monkeypatch):
    output = left_behind(tiny_llama, tmp_path, monkeypatch)

    assert fewbits.quantize(tiny_llama, output, format="Q4_0", force=True).resumed == 9


def test_two_runs_do_not_write_the_same_output(tiny_llama, tmp_path):
    with Journal(tmp_path / "out.gguf", "x"), pytest.raises(OutputError, match="another fewbits"):
        fewbits.quantize(tiny_llama, tmp_path / "out.gguf")


def test_what_reads_back_differently_does_not_get_the_name(tiny_llama, tmp_path, monkeypatch):
    from fewbits.errors import VerificationError

    def corrupt(job, journal, progress, threads):
        region = job.layout.parts["blk.1.attn_q.weight"][WHOLE]
        journal.write(b"\x55" * 64, region.offset)
        verify.verify_output(job, journal, progress, threads)

    monkeypatch.setattr("fewbits.pipeline.quantize.verify_output", corrupt)
    with pytest.raises(VerificationError, match=r"blk\.1\.attn_q"):
        fewbits.quantize(tiny_llama, tmp_path / "out.gguf", format="Q4_0")
    assert not (tmp_path / "out.gguf").exists()


def test_numbers_that_are_not_the_sources_are_found(tiny_llama, tmp_path, monkeypatch):
    from fewbits.algorithms.registry import NamedAlgorithm
    from fewbits.errors import VerificationError
    from fewbits.formats.stored_rows import as_float32

    honest = NamedAlgorithm.quantize_rows
    monkeypatch.setattr(
        NamedAlgorithm,
        "quantize_rows",
        lambda self, rows, *rest: honest(self, np.flip(as_float32(rows), 1) * -3, *rest),
    )

    with pytest.raises(VerificationError, match="squared error"):
        fewbits.quantize(tiny_llama, tmp_path / "out.gguf", format="Q4_0")
    assert not (tmp_path / "out.gguf").exists()


def killed_midway(command, output, kill):
    """The process and what it said, killed with some tensors finished; on a busy machine that may take attempts."""
    for _ in range(60):
        # Below a shell that runs tests in the background, interrupts would be ignored.
        heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if journal_path(output).exists() and journal_path(output).read_bytes().count(b"\n") > 3:
                process.send_signal(kill)
                break
            time.sleep(0.002)
        message = process.communicate()[1]
        if not output.exists():
            return process, message
        output.unlink()
    raise AssertionError("always finished before it could be killed")


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_is_resumed_by_the_same_command(tiny_llama, tmp_path, kill):
    fewbits.quantize(tiny_llama, tmp_path / "alone.gguf", format="Q2_K")
    output = tmp_path / "out.gguf"
    command = [
        sys.executable,
        "-m",
        "fewbits",
        "quantize",
        tiny_llama,
        output,
        "--format",
        "Q2_K",
        "--threads",
        "1",
    ]
    process, message = killed_midway(command, output, kill)
    if kill == signal.SIGINT:
        assert process.returncode == 130
        assert "same command goes on" in message
        assert "Traceback" not in message

    subprocess.run(command, check=True, capture_output=True)

    assert digest(output) == digest(tmp_path / "alone.gguf")
    assert leftovers(tmp_path) == []


def test_dry_run_predicts_the_size_and_leaves_nothing(tiny_llama, tmp_path):
    predicted = fewbits.dry_run(tiny_llama, tmp_path / "out.gguf", format="Q4_K")

    assert list(tmp_path.iterdir()) == []
    assert predicted.tried > 5
    assert predicted.ran is True
    assert 0 < predicted.tried_size < predicted.size
    assert fewbits.quantize(tiny_llama, tmp_path / "out.gguf", format="Q4_K").size == predicted.size
    assert 50e6 < predicted.peak_memory < 2e9
