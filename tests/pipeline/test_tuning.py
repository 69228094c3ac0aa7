"""Tuning the numbers of a finished artifact, from command to file, on a model small enough to train in seconds."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from interruption import Killed, leftovers

import fewbits
from fewbits.checkpoint.source import open_checkpoint
from fewbits.formats import QTensor, get_format
from fewbits.language_model.transformers_model import model_of
from fewbits.pipeline.journal import Journal, tuning_path
from fewbits.tuning import distillation
from fewbits.tuning.distillation import Schedule
from fewbits.tuning.parameters import MatrixParameters, trainable_part

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

KINDS = {
    "integers": ({"to": "compressed-tensors", "format": "INT2_G64"}, "out"),
    "GGUF": ({"to": "gguf", "format": "Q2_K"}, "out.gguf"),
}


@pytest.fixture(scope="module")
def best(tiny_llama, sample_text, few_tokens):
    """A function that quantizes the tiny model with effort best."""
    few_tokens.setattr("fewbits.pipeline.calibrate.TOKENS", {"balanced": 4096, "best": 8192})
    few_tokens.setattr("fewbits.pipeline.trained.SCHEDULES", {"best": Schedule(batch=1, passes=3, most=60)})

    def quantize(output, source=tiny_llama, **options):
        options.setdefault("tune", "like" not in options)
        return fewbits.quantize(source, output, effort="best", calibration=sample_text, threads=1, **options)

    return quantize


def content(path):
    """All bytes of a file or of a folder."""
    files = [path] if path.is_file() else sorted(path.iterdir())
    return {file.name: file.read_bytes() for file in files}


@pytest.mark.parametrize("kind", KINDS)
def test_tuning_lowers_the_loss_on_text_that_it_has_not_seen(best, tiny_llama, kl, tmp_path, kind):
    options, name = KINDS[kind]
    plain = best(tmp_path / f"plain-{name}", tune=False, **options)
    tuned = best(tmp_path / name, **options)

    assert plain.tuning == ""
    assert tuned.tuning.startswith("kept: held-out KL ")
    before, after = (kl(tmp_path / file, tiny_llama) for file in (f"plain-{name}", name))
    assert after < 0.95 * before  # measured: 0.933 for integers, 0.868 for GGUF


def test_activations_kept_in_16_bits_give_nearly_the_same_gradients(tiny_llama, monkeypatch):
    monkeypatch.setattr(distillation, "LARGE", 1)
    model = model_of(open_checkpoint(tiny_llama))
    ids, gradients = torch.arange(48)[None], []
    direction = torch.randn((1, 48, model.config.hidden_size), generator=torch.Generator().manual_seed(1))
    for kept in (nullcontext(), distillation.activations_in_16_bits(model)):
        model.zero_grad()
        with kept:
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        hidden.backward(direction)
        gradients.append(torch.cat([p.grad.flatten() for p in model.model.layers.parameters()]))
    exact, found = gradients

    error = (found - exact).norm() / exact.norm()
    assert 0 < error < 2**-7


def test_it_is_left_out_from_four_bits_on_unless_asked_for(best, tmp_path):
    wide, narrow = (best(tmp_path / f"{f}.gguf", format=f, tune=None).tuning for f in ("Q4_K", "Q2_K"))

    assert wide == "not tried: 4.5 bits a weight (--tune does it)"
    assert narrow.startswith("kept: ")


@pytest.mark.parametrize("tune", [None, True])
@pytest.mark.parametrize("name", ["Q4_K", "Q2_K"])
def test_an_artifact_is_made_again_with_or_without_as_it_was(best, tmp_path, name, tune):
    first = best(tmp_path / "first.gguf", format=name, tune=tune)
    again = best(tmp_path / "again.gguf", like=tmp_path / "first.gguf", tune=None)

    assert again.tuning == first.tuning != ""
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "first.gguf").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("moment", ["reopen", "finish"])
def test_a_run_killed_while_it_writes_tuned_numbers_ends_in_the_same_bytes(
    best, tmp_path, monkeypatch, kind, moment
):
    options, name = KINDS[kind]
    (tmp_path / "whole").mkdir()
    best(tmp_path / "whole" / name, **options)
    (tmp_path / "killed").mkdir()
    act, reopened = getattr(Journal, moment), []

    def dying(self, tensor, *arguments, **more):
        """Dies at the third tuned tensor: before its bytes, or after them."""
        if moment == "reopen":
            reopened.append(tensor)
        found = act(self, tensor, *arguments, **more)
        if tuning_path(self.output).exists() and moment == "finish":
            reopened.append(tensor)
        if len(reopened) == 3:
            raise Killed
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Journal, moment, dying)
        with pytest.raises(Killed):
            best(tmp_path / "killed" / name, **options)
    with monkeypatch.context() as patch:  # what was found isn't looked for again
        patch.setattr("fewbits.pipeline.trained.trained_numbers", None)
        best(tmp_path / "killed" / name, **options)

    assert content(tmp_path / "whole" / name) == content(tmp_path / "killed" / name)
    assert leftovers(tmp_path / "killed") == []


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_help_is_undone(best, tmp_path, monkeypatch, kind):
    options, name = KINDS[kind]
    monkeypatch.setattr("fewbits.pipeline.trained.SCHEDULES", {"best": Schedule(rate=1.0)})
    plain = best(tmp_path / f"plain-{name}", tune=False, **options)
    tuned = best(tmp_path / name, **options)

    assert tuned.tuning.startswith("undone: held-out KL ")
    assert plain.tuning == ""
    first, second = (open_checkpoint(tmp_path / n).tensors for n in (f"plain-{name}", name))
    for tensor in first:
        assert np.array_equal(first[tensor].read(), second[tensor].read()), tensor


def test_tuning_that_does_not_fit_the_memory_is_left_out(best, tmp_path, monkeypatch):
    monkeypatch.setattr("fewbits.pipeline.trained.tuning_memory", lambda *_: 5_000_000_000)
    made = best(tmp_path / "out.gguf", format="Q2_K")

    assert made.tuning.startswith("not tried: takes 5")
    assert open_checkpoint(tmp_path / "out.gguf").metadata["fewbits.tuning"].strip() == made.tuning


@pytest.mark.parametrize(
    ("name", "part"), [("INT2_G64", 1), ("INT2_G64_SYM", 0), ("Q4_1", 0), ("Q2_K", 16), ("MXFP4", None)]
)
def test_only_numbers_that_the_container_holds_finely_are_trained(name, part):
    weight = np.random.default_rng(0).standard_normal((8, 256)).astype(np.float32)
    fmt = get_format(name)
    blocks = weight.reshape(-1, fmt.block_of(256))
    params = fmt.fit(blocks)
    assert trainable_part(fmt, params) == part
    if part is None:
        return
    found = MatrixParameters(QTensor(fmt, (8, 256), fmt.round(blocks, params).reshape(8, 256), params), part)
    zero = [np.zeros(len(numbers), np.float32) for numbers in found.start]
    slope = np.random.default_rng(1).standard_normal((8, 256)).astype(np.float32)
    moved = [numbers.copy() for numbers in zero]
    moved[0][0] = 1e-2
    difference = ((found.values(moved) - found.values(zero)) * slope).sum() / 1e-2
    assert difference == pytest.approx(found.gradients(slope, zero)[0][0], rel=0.02)
