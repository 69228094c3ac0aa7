"""Every number format that a GGUF plan may name, loaded and run by llama.cpp itself."""

import numpy as np
import pytest

import fewbits
from fewbits.checkpoint.source import open_checkpoint
from fewbits.evaluation.language_model import load_language_model
from fewbits.export.registry import get_exporter
from llama_cpp_oracle import LlamaCpp

TOKENS = np.random.default_rng(0).integers(1, 384, 48).tolist()
# llama.cpp rounds activations to 8 bits, and fewbits simulates that; what is left is the order of sums and
# roundings that tip over. Measured at most 0.0016; a wrong nibble order gives more than 1.
AGREEMENT = 0.01


def log_probabilities(logits):
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def divergence(p, q):
    return float((np.exp(p) * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("name", [*get_exporter("gguf").formats, "BF16", "F16", "F32"])
def test_llama_cpp_computes_what_the_decoded_weights_say(name, tiny_llama, tmp_path):
    path = tmp_path / "out.gguf"
    fewbits.quantize(tiny_llama, path, format=name)
    dtypes = {t.dtype for n, t in open_checkpoint(path).tensors.items() if "norm" not in n}
    assert dtypes == {name}

    runtime = log_probabilities(LlamaCpp(path).logits(TOKENS))
    model = load_language_model(open_checkpoint(path))
    ours = log_probabilities(np.concatenate(list(model.logits(TOKENS, 0))))

    assert divergence(ours, runtime) < AGREEMENT


def test_fallbacks_load_too(narrow_llama, tmp_path):
    path = tmp_path / "out.gguf"
    fewbits.quantize(narrow_llama, path, format="Q2_K")

    runtime = log_probabilities(LlamaCpp(path).logits(TOKENS))
    ours = log_probabilities(
        np.concatenate(list(load_language_model(open_checkpoint(path)).logits(TOKENS, 0)))
    )
    assert divergence(ours, runtime) < AGREEMENT


def test_a_one_block_model_of_a_dry_run_loads(tiny_llama, tmp_path):
    from fewbits.pipeline.dry_run import one_block
    from fewbits.pipeline.goal import Goal
    from fewbits.pipeline.job import Settings, prepare_job
    from fewbits.pipeline.journal import Journal
    from fewbits.pipeline.quantize import run_job
    from fewbits.progress import Silent

    job = one_block(prepare_job(tiny_llama, Goal(format="Q8_0"), Settings()))
    with Journal(tmp_path / "one.gguf", job.run) as journal:
        journal.resume(job.layout, discard=False)
        run_job(job, journal, 1, Settings(), Silent())
        journal.publish()

    assert np.isfinite(LlamaCpp(tmp_path / "one.gguf").logits(TOKENS)).all()
