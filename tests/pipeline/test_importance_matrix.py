"""Importance matrices: calibration's statistics as llama.cpp reads them, and such a file in place of calibration."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

import fewbits
import ggml_oracle
from fewbits.algorithms import rtn
from fewbits.calibration.gather import statistics_for
from fewbits.calibration.imatrix import ImportanceMatrix, read_imatrix, write_imatrix
from fewbits.calibration.text import calibration_tokens
from fewbits.checkpoint.source import open_checkpoint
from fewbits.errors import CalibrationError, FewbitsError, PlanError
from fewbits.export.registry import get_exporter
from fewbits.formats import get_format
from fewbits.progress import Silent
from tiny_models import TINY_MODELS, TinyModel, save

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module", autouse=True)
def _one_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWBITS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def matrix(tiny_llama, sample_text, tmp_path_factory):
    """The tiny model's, made by the command's function."""
    path = tmp_path_factory.mktemp("matrix") / "imatrix.gguf"
    fewbits.imatrix(tiny_llama, path, calibration=sample_text, tokens=4096)
    return path


@pytest.fixture(scope="module")
def store(tiny_llama, sample_text):
    checkpoint = open_checkpoint(tiny_llama)
    return statistics_for(checkpoint, calibration_tokens(checkpoint, sample_text, 4096), None, Silent())


def without(path, target, *names):
    """The matrix of a file without the entries of some tensors."""
    found = read_imatrix(path)
    entries = {name: entry for name, entry in found.entries.items() if name not in names}
    write_imatrix(target, ImportanceMatrix(entries, ["a.txt", "b.txt"], 3, 128))
    return target


def test_every_tensor_s_entry_is_its_statistics_diagonal(tiny_llama, sample_text, store, tmp_path):
    result = fewbits.imatrix(tiny_llama, tmp_path / "out.gguf", calibration=sample_text, tokens=4096)
    found = read_imatrix(tmp_path / "out.gguf")

    assert result.uncovered == ()
    assert result.tensors == len(found.entries) == 3 * 7 + 1
    assert (found.datasets, found.chunk_size) == (["sample.txt"], 512)
    assert found.chunk_count * found.chunk_size == result.tokens
    assert result.tokens == store.load("model.layers.0.mlp.up_proj.weight").tokens
    pairs = {
        "blk.0.attn_q.weight": "model.layers.0.self_attn.q_proj.weight",
        "blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj.weight",
        "token_embd.weight": "model.embed_tokens.weight",
    }
    for name, parameter in pairs.items():
        np.testing.assert_allclose(
            found.importance(name), store.load(parameter).importance(), rtol=1e-5, err_msg=name
        )


def test_experts_have_an_entry_each(tiny_llama, sample_text, tmp_path):
    tiny = TINY_MODELS["mixtral"]
    model = tmp_path / "mixtral"
    save(TinyModel(tiny.model_type, {**tiny.config, "vocab_size": 384}), model)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_llama / file, model / file)
    result = fewbits.imatrix(model, tmp_path / "out.gguf", calibration=sample_text, tokens=4096)
    found = read_imatrix(tmp_path / "out.gguf")

    sums, counts = found.entries["blk.1.ffn_down_exps.weight"]
    assert sums.shape == (4, 96)
    assert counts.sum() == 2 * result.tokens  # two experts for every token
    gate, up = (found.importance(f"blk.1.ffn_{kind}_exps.weight") for kind in ("gate", "up"))
    assert gate.shape == (4, 64)
    assert not np.allclose(gate[0], gate[1], rtol=0.01)
    np.testing.assert_allclose(gate, up, rtol=1e-5)  # both read the same inputs

    # A stack of experts is rounded by the weights of each, wherever its rows are cut.
    fewbits.quantize(model, tmp_path / "made.gguf", format="Q4_1", imatrix=tmp_path / "out.gguf")
    weight = next(
        t
        for t in get_exporter("gguf").tensors(open_checkpoint(model))
        if t.name.endswith("1.ffn_down_exps.weight")
    ).source.read()
    made = open_checkpoint(tmp_path / "made.gguf").tensors["blk.1.ffn_down_exps.weight"].read()
    down = found.importance("blk.1.ffn_down_exps.weight")
    for expert in range(4):
        alone = rtn.quantize(weight[expert], get_format("Q4_1"), down[expert]).dequantize()
        np.testing.assert_array_equal(made[expert], alone)


@pytest.mark.parametrize("name", ["Q4_0", "Q3_K", "Q4_K"])
def test_llama_cpp_s_quantizer_loses_less_by_our_matrix(tiny_llama, matrix, store, name):
    """By the loss that the statistics predict on tokens held out, on every layer together."""
    found = read_imatrix(matrix)
    plain = weighted = 0.0
    for kind, parameter in (("attn_output", "self_attn.o_proj"), ("ffn_down", "mlp.down_proj")):
        for block in range(3):
            statistics = store.load(f"model.layers.{block}.{parameter}.weight")
            weight = open_checkpoint(tiny_llama).tensors[f"model.layers.{block}.{parameter}.weight"].read()

            def loss(importance, weight=weight, statistics=statistics):
                data = ggml_oracle.quantize(name, weight, importance)
                error = ggml_oracle.dequantize(name, data) - weight
                per_row = np.einsum("nk,kl,nl->n", error, statistics.held_out, error)
                return float(per_row @ statistics.row_importance)

            plain += loss(None)
            weighted += loss(found.importance(f"blk.{block}.{kind}.weight"))
    assert weighted < plain


def test_rounding_by_a_matrix_loses_less_at_the_same_bytes(tiny_llama, matrix, kl, tmp_path):
    fewbits.quantize(tiny_llama, tmp_path / "fast.gguf", format="Q4_K")
    made = fewbits.quantize(tiny_llama, tmp_path / "made.gguf", format="Q4_K", imatrix=matrix)

    files = [open_checkpoint(tmp_path / name) for name in ("fast.gguf", "made.gguf")]
    assert [t.dtype for t in files[0].tensors.values()] == [t.dtype for t in files[1].tensors.values()]
    before, after = (kl(file.path, tiny_llama) for file in files)
    assert after < 0.95 * before
    assert made.warnings == ()
    plan = json.loads(files[1].metadata["fewbits.plan"])
    assert {c["algorithm"] for c in plan.values()} == {"imatrix", "none"}
    assert files[1].metadata["fewbits.imatrix.name"] == "imatrix.gguf (sample.txt)"


def test_what_it_doesn_t_cover_is_rounded_plainly_and_named(tiny_llama, matrix, tmp_path):
    partial = without(matrix, tmp_path / "partial.gguf", "token_embd.weight", "blk.0.attn_k.weight")
    fewbits.quantize(tiny_llama, tmp_path / "fast.gguf", format="Q4_K")
    fewbits.quantize(tiny_llama, tmp_path / "all.gguf", format="Q4_K", imatrix=matrix)
    made = fewbits.quantize(tiny_llama, tmp_path / "made.gguf", format="Q4_K", imatrix=partial)

    (warning,) = made.warnings
    assert "nothing for 2 tensors" in warning
    assert "token_embd.weight" in warning
    assert "blk.0.attn_k.weight" in warning
    fast, whole, some = (open_checkpoint(tmp_path / f"{n}.gguf").tensors for n in ("fast", "all", "made"))
    for name, tensor in some.items():
        if name in ("token_embd.weight", "blk.0.attn_k.weight"):
            assert np.array_equal(tensor.read(), fast[name].read())
            assert not np.array_equal(tensor.read(), whole[name].read())
        else:
            assert np.array_equal(tensor.read(), whole[name].read())


@pytest.mark.parametrize(
    "goal", [{"size": "1.3MB"}, {"bits": 5.0}, {"format": "Q5_K", "pins": ["attn_v=Q8_0"]}]
)
def test_goals_are_kept_with_a_matrix(tiny_llama, matrix, tmp_path, goal):
    made = fewbits.quantize(tiny_llama, tmp_path / "out.gguf", imatrix=matrix, **goal)
    again = fewbits.quantize(tiny_llama, tmp_path / "b.gguf", imatrix=matrix, like=tmp_path / "out.gguf")

    assert made.size <= 1_300_000 or "size" not in goal
    assert made.size > 0.9 * 1_300_000 or "size" not in goal
    assert made.bits_per_weight <= goal.get("bits", 16)
    if "pins" in goal:
        assert {t.dtype for n, t in open_checkpoint(made.output).tensors.items() if "attn_v" in n} == {"Q8_0"}
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert again.effort == "fast"


def test_a_plan_is_run_with_a_matrix(tiny_llama, matrix, tmp_path):
    plan = fewbits.plan(tiny_llama, size="1.4MB")
    (tmp_path / "plan.json").write_text(plan.to_json())
    fewbits.quantize(tiny_llama, tmp_path / "out.gguf", plan=tmp_path / "plan.json", imatrix=matrix)
    made = json.loads(open_checkpoint(tmp_path / "out.gguf").metadata["fewbits.plan"])
    assert {n: c["format"] for n, c in made.items()} == plan.formats()
    assert {c["algorithm"] for c in made.values()} == {"imatrix", "none"}


def test_gguf_to_gguf_with_a_matrix_needs_neither_torch_nor_transformers(tiny_llama, matrix, tmp_path):
    fewbits.quantize(tiny_llama, tmp_path / "a.gguf", format="BF16")
    code = (
        "import sys, fewbits\n"
        "fewbits.quantize(*sys.argv[1:3], size='1.3MB', imatrix=sys.argv[3])\n"
        "print([m for m in ('torch', 'transformers', 'tokenizers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.gguf"), str(tmp_path / "b.gguf"), str(matrix)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"
    fewbits.quantize(tiny_llama, tmp_path / "c.gguf", size="1.3MB", imatrix=matrix)
    first, second = (open_checkpoint(tmp_path / f"{n}.gguf").tensors for n in "bc")
    assert all(np.array_equal(t.read(), second[n].read()) for n, t in first.items())


def test_columns_without_importance_still_get_numbers(tiny_llama, matrix, tmp_path):
    found = read_imatrix(matrix)
    entries = {}
    for name, (sums, counts) in found.entries.items():
        sums = sums.copy()
        sums[: len(sums) // 2] = 0
        entries[name] = sums * ("attn_q" not in name), counts
    write_imatrix(tmp_path / "zeros.gguf", ImportanceMatrix(entries))
    for name in ("Q4_0", "Q4_K", "Q2_K", "IQ4_NL"):
        fewbits.quantize(
            tiny_llama, tmp_path / "out.gguf", format=name, imatrix=tmp_path / "zeros.gguf", force=True
        )
        for tensor in open_checkpoint(tmp_path / "out.gguf").tensors.values():
            assert np.isfinite(tensor.read()).all()


def test_wrong_matrices_are_refused(tiny_llama, narrow_llama, matrix, tmp_path):
    def refused(error, message, imatrix=matrix, source=tiny_llama, **options):
        with pytest.raises(error, match=message):
            fewbits.quantize(source, tmp_path / "out.gguf", imatrix=imatrix, **options)

    refused(CalibrationError, "another model: found 256 columns of 1 experts for .*192", source=narrow_llama)
    write_imatrix(
        tmp_path / "other.gguf",
        ImportanceMatrix({"enc.weight": (np.ones(64, np.float32), np.ones(1, np.float32))}),
    )
    refused(CalibrationError, "nothing for this model .*enc.weight", imatrix=tmp_path / "other.gguf")
    (tmp_path / "old.dat").write_bytes(b"\x10\0\0\0 entries")
    refused(CalibrationError, "GGUF form.*llama-imatrix --in-file", imatrix=tmp_path / "old.dat")
    refused(FewbitsError, "none.gguf", imatrix=tmp_path / "none.gguf")
    refused(FewbitsError, "--imatrix takes the place of calibration.*balanced", effort="balanced")
    assert not (tmp_path / "out.gguf").exists()


def test_what_was_made_with_a_matrix_is_made_again_with_that_one_only(tiny_llama, matrix, tmp_path):
    fewbits.quantize(tiny_llama, tmp_path / "made.gguf", format="Q4_K", imatrix=matrix)
    fewbits.quantize(tiny_llama, tmp_path / "plain.gguf", format="Q4_K")
    other = without(matrix, tmp_path / "other.gguf", "token_embd.weight")
    for options, message in (
        ({"like": tmp_path / "made.gguf"}, "made with an importance matrix.*--imatrix"),
        ({"like": tmp_path / "made.gguf", "imatrix": other}, "made with another importance matrix"),
        ({"like": tmp_path / "plain.gguf", "imatrix": matrix}, "made without an importance matrix"),
    ):
        with pytest.raises(PlanError, match=message):
            fewbits.quantize(tiny_llama, tmp_path / "out.gguf", **options)


def test_a_dry_run_takes_a_matrix(tiny_llama, matrix, tmp_path):
    predicted = fewbits.dry_run(tiny_llama, tmp_path / "out.gguf", format="Q4_K", imatrix=matrix)
    assert (
        predicted.size
        == fewbits.quantize(tiny_llama, tmp_path / "out.gguf", format="Q4_K", imatrix=matrix).size
    )
