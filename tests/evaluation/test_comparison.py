"""The whole comparison on a tiny random model, against transformers used directly."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import torch

from evaluation_models import CONTEXT, make_model, make_tokenizer
from fewbits.checkpoint.source import open_checkpoint
from fewbits.errors import EvaluationError, MissingExtraError
from fewbits.evaluation import comparison, language_model, memory
from fewbits.evaluation.comparison import evaluate
from fewbits.evaluation.text import default_text, read_text


class Watcher:
    """Progress that remembers."""

    def __init__(self):
        self.stages, self.details = [], []

    def stage(self, name, total, unit):
        self.stages.append((name, total, unit))

    def advance(self, done, detail=""):
        self.details += [detail] * done

    def message(self, text):
        raise AssertionError(text)


def brute_force(original, quantized, text, chunks, bos=None):
    """KL, negative log likelihoods and agreement of each scored position, written as in perplexity.cpp."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    models = [AutoModelForCausalLM.from_pretrained(d, dtype=torch.float32) for d in (original, quantized)]
    ids = AutoTokenizer.from_pretrained(original).encode(text, add_special_tokens=False)
    ids = ids if bos is None else [bos, *ids]
    rows = []
    for i in range(chunks):
        tokens = ids[i * CONTEXT : (i + 1) * CONTEXT]
        read = tokens if bos is None else [bos, *tokens[1:]]
        with torch.inference_mode():
            p, q = (m(torch.tensor([read])).logits[0].double().log_softmax(-1) for m in models)
        for j in range(CONTEXT // 2, CONTEXT - 1):
            kl = float((p[j].exp() * (p[j] - q[j])).sum())
            rows.append((kl, -q[j, tokens[j + 1]], -p[j, tokens[j + 1]], p[j].argmax() == q[j].argmax()))
    return np.array(rows, float)


def test_a_model_against_itself(original, text_file):
    result = evaluate(original, original, text_file, context=CONTEXT, chunks=3)

    assert result.kl_mean == 0
    assert result.top1_agreement == 1
    assert result.perplexity == result.perplexity_reference
    assert (result.chunks, result.context) == (3, CONTEXT)
    assert result.tokens == 3 * (CONTEXT - 1 - CONTEXT // 2)
    assert result.text_sha256 == read_text(text_file).sha256
    assert result.activations == result.activations_reference == "float"


def test_a_noisy_copy(original, noisy, text_file, passage):
    progress = Watcher()

    result = evaluate(noisy, original, text_file, context=CONTEXT, chunks=4, threads=1, progress=progress)

    kl, nll, base, same = brute_force(original, noisy, passage, 4).T
    assert result.kl_mean == pytest.approx(kl.mean(), rel=1e-4)
    assert result.kl_mean > 1e-3
    assert result.kl_p99 == pytest.approx(np.quantile(kl, 0.99), rel=1e-4)
    assert result.perplexity == pytest.approx(math.exp(nll.mean()), rel=1e-5)
    assert result.perplexity_reference == pytest.approx(math.exp(base.mean()), rel=1e-5)
    assert result.top1_agreement == pytest.approx(same.mean())
    assert progress.stages == [("evaluate", 4, "chunks")]
    assert progress.details[-1] == f"KL {result.kl_mean:.4f}"


def test_the_beginning_of_each_chunk_is_the_token_for_it(original, noisy, text_file, passage, tmp_path):
    """Where the tokenizer adds one: put in front of the text, and in the first place of every chunk."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    directories = [shutil.copytree(d, tmp_path / d.name) for d in (original, noisy)]
    for directory in directories:
        tokenizer = AutoTokenizer.from_pretrained(directory)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
        tokenizer.save_pretrained(directory)

    result = evaluate(directories[1], directories[0], text_file, context=CONTEXT, chunks=3)

    kl = brute_force(original, noisy, passage, 3, bos=0)[:, 0]
    assert result.kl_mean == pytest.approx(kl.mean(), rel=1e-4)
    assert result.kl_mean != pytest.approx(brute_force(original, noisy, passage, 3)[:, 0].mean(), rel=1e-4)


def test_passes_in_slices_are_one_pass(original, monkeypatch):
    model = language_model.load_language_model(open_checkpoint(original))
    tokens = [int(token) for token in np.random.default_rng(0).integers(2, model.vocabulary, 40)]
    whole = list(model.logits(tokens, 20))
    monkeypatch.setattr(language_model, "LOGITS", 7 * model.vocabulary)

    sliced = list(model.logits(tokens, 20))

    assert [len(piece) for piece in whole] == [20]
    assert [len(piece) for piece in sliced] == [7, 7, 6]
    np.testing.assert_allclose(np.concatenate(sliced), whole[0], rtol=1e-4, atol=1e-5)


def test_without_a_text_there_is_one(original, noisy):
    result = evaluate(noisy, original, context=CONTEXT, chunks=1)

    assert result.text == default_text().name
    assert result.kl_mean > 0


def test_fewer_chunks_when_the_text_ends(original, tmp_path, passage):
    path = tmp_path / "short.txt"
    path.write_text(passage[:300])

    result = evaluate(original, original, path, context=CONTEXT, chunks=500)

    assert 1 <= result.chunks < 500


def test_too_short_a_text(original, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("the cat")

    with pytest.raises(EvaluationError, match=r"too short.*found \d+ tokens; allowed: 32 or more"):
        evaluate(original, original, path, context=CONTEXT)


def test_another_vocabulary_size(original, passage, text_file, tmp_path):
    tokenizer = make_tokenizer(passage, 290)
    tokenizer.save_pretrained(tmp_path)
    make_model(len(tokenizer)).save_pretrained(tmp_path)

    with pytest.raises(EvaluationError, match=r"different vocabularies: found 2\d\d and 3\d\d tokens"):
        evaluate(tmp_path, original, text_file, context=CONTEXT)


def test_other_tokens_under_the_same_ids(original, text_file, tmp_path):
    other = shutil.copytree(original, tmp_path / "other")
    path = other / "tokenizer.json"
    data = json.loads(path.read_text())
    ids = data["model"]["vocab"]
    ids["Ġcat"], ids["Ġdog"] = ids["Ġdog"], ids["Ġcat"]
    path.write_text(json.dumps(data))

    with pytest.raises(EvaluationError, match="different vocabularies: found 2 tokens that differ"):
        evaluate(other, original, text_file, context=CONTEXT)


def test_a_context_the_model_is_not_made_for(original, text_file):
    with pytest.raises(EvaluationError, match="found context 129; allowed: up to 128"):
        evaluate(original, original, text_file, context=129)


@pytest.mark.parametrize(
    "options", [{"context": 3}, {"chunks": 0}, {"threads": 0}, {"activations": "rounded"}]
)
def test_settings_out_of_range(original, text_file, options):
    with pytest.raises(EvaluationError, match=r"found .*allowed"):
        evaluate(original, original, text_file, **options)


def test_the_calibration_text_is_refused(original, text_file):
    passage = read_text(text_file)
    for recorded in (passage.sha256, f"sha256:{passage.sha256}"):
        metadata = {"fewbits.calibration.hash": recorded}
        checkpoint = dataclasses.replace(open_checkpoint(original), metadata=metadata)

        with pytest.raises(EvaluationError, match="calibrated on this very text"):
            comparison._refuse_calibration_text(checkpoint, passage)
        comparison._refuse_calibration_text(checkpoint, default_text())


def test_memory_is_asked_first(original):
    checkpoint = open_checkpoint(original)
    parameters = sum(p.numel() for p in make_model(300).parameters())

    assert memory.float32_bytes(checkpoint) == 4 * parameters
    memory.require_memory([checkpoint], None)
    memory.require_memory([checkpoint, checkpoint], 2 * 4 * parameters + memory._OVERHEAD)
    with pytest.raises(EvaluationError, match=r"run the models side by side.*GB available"):
        memory.require_memory([checkpoint, checkpoint], 2 * 4 * parameters + memory._OVERHEAD - 1)


def test_available_memory_is_read_in_kibibytes(tmp_path):
    path = tmp_path / "meminfo"
    path.write_text("MemTotal: 9 kB\nMemFree: 3 kB\nMemAvailable:    5 kB\n")

    assert memory.available_memory(path) == 5 * 1024
    assert memory.available_memory(tmp_path / "none") is None


def test_a_missing_extra_is_named(original, text_file, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "transformers" else real(name, *a)
    )

    with pytest.raises(MissingExtraError, match=r"transformers.*fewbits\[models\]"):
        evaluate(original, original, text_file, context=CONTEXT)


def test_missing_weights_are_not_made_up(original, text_file, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(original, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(EvaluationError, match=r"lacks weights: found model\.layers\.1\.mlp\.up_proj\.weight"):
        evaluate(broken, original, text_file, context=CONTEXT)


def test_fp8_weights_are_read_with_their_scales(original, text_file, tmp_path):
    """A directory in FP8, against one that holds the same values in float32."""
    from safetensors.torch import load_file, save_file

    packed, unpacked = (shutil.copytree(original, tmp_path / name) for name in ("packed", "unpacked"))
    tensors, values = {}, {}
    for name, weight in load_file(original / "model.safetensors").items():
        tensors[name] = values[name] = weight
        if "_proj" in name:
            scale = weight.abs().max() / 448
            tensors[name] = (weight / scale).to(torch.float8_e4m3fn)
            tensors[f"{name}_scale"] = scale.reshape(1)
            values[name] = tensors[name].float() * scale
    save_file(tensors, packed / "model.safetensors", metadata={"format": "pt"})
    save_file(values, unpacked / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    (packed / "config.json").write_text(json.dumps(config))

    found = evaluate(packed, original, text_file, context=CONTEXT, chunks=2)

    expected = evaluate(unpacked, original, text_file, context=CONTEXT, chunks=2)
    assert found.kl_mean == pytest.approx(expected.kl_mean, rel=1e-6)
    assert found.kl_mean > 1e-5


def test_no_tokenizer(original, text_file, tmp_path):
    bare = shutil.copytree(original, tmp_path / "bare", ignore=shutil.ignore_patterns("token*"))

    with pytest.raises(EvaluationError, match="has no tokenizer"):
        evaluate(original, bare, text_file, context=CONTEXT)


def test_description_has_the_figures(original, noisy, text_file):
    result = evaluate(noisy, original, text_file, context=CONTEXT, chunks=2)

    text = result.describe()

    for value in (f"{result.kl_mean:.5f}", f"{result.perplexity:.4f}", f"{result.top1_agreement:.2%}"):
        assert value in text
