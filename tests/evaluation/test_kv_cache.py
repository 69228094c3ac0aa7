"""A rounded cache in models of several architectures, from directories and from GGUF files."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.tiny_models import TINY_MODELS, sample_tokens, save
from transformers import MambaConfig, MambaForCausalLM

import fewbits
from fewbits.checkpoint.source import open_checkpoint
from fewbits.errors import EvaluationError
from fewbits.evaluation.language_model import LanguageModel, load_language_model


def logits(model, kv_cache, split):
    """Of all tokens in two passes, the second from token `split` on."""
    model = model if kv_cache is None else model.with_kv_cache(kv_cache)
    tokens = sample_tokens()
    first, cache = model.forward(tokens[:split], None, split)
    rest, _ = model.forward(tokens[split:], cache, len(tokens) - split)
    return torch.cat([first, rest])


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "phi3", "mixtral"])
def test_any_architecture_reads_rounded_keys_and_values(kind, tmp_path):
    reference = save(TINY_MODELS[kind], tmp_path / "model")
    model = with_tokenizer(tmp_path / "model", reference)

    exact, rounded, coarse = (logits(model, name, 30) for name in (None, "fp8", "fp8_e5m2"))

    assert 0 < (rounded - exact).square().mean() < (coarse - exact).square().mean()
    # The cache's contents don't depend on how the text was cut.
    assert torch.allclose(logits(model, "fp8", 11), rounded, atol=0.02 * (rounded - exact).abs().max() + 1e-4)


def with_tokenizer(folder, reference):
    """The model without a tokenizer of its own: none is needed here."""
    return LanguageModel(
        name=folder.name, tokenizer=None, vocabulary=reference.config.vocab_size, context_limit=None,
        activations="float", _model=reference.float().eval(), _roundings={},
    )  # fmt: skip


def test_gguf_files_and_directories_are_rounded_alike(original, text_file, tmp_path):
    fewbits.quantize(original, tmp_path / "model.gguf", format="F32", effort="fast")

    found = [
        fewbits.evaluate(
            path, original, text=text_file, context=32, chunks=2, threads=1, kv_cache="fp8/fp8_e5m2"
        )
        for path in (tmp_path / "model.gguf", original)
    ]

    assert found[0].kl_mean == pytest.approx(found[1].kl_mean, rel=0.05)
    assert found[0].kl_mean_float_kv_cache == pytest.approx(0, abs=1e-6)
    assert found[0].kl_mean > 1e-4
    assert (found[0].kv_cache, found[0].kv_cache_bytes, found[0].kv_cache_bytes_f16) == (
        "fp8/fp8_e5m2",
        128,
        256,
    )


def test_blocks_are_of_the_channels_that_a_gguf_file_has_side_by_side(tiny_llama, tmp_path):
    fewbits.quantize(tiny_llama, tmp_path / "model.gguf", format="F32", effort="fast")
    checkpoint = open_checkpoint(tmp_path / "model.gguf")

    keys = load_language_model(checkpoint, "float", "q4_0").kv_cache.keys

    # llama.cpp's rotary embedding turns channels 2 i and 2 i + 1, transformers' i and i + 16.
    assert keys.places == (*range(0, 32, 2), *range(1, 32, 2))
    x = torch.randn(1, 2, 3, 32, generator=torch.Generator().manual_seed(0))
    file = checkpoint.tensors["blk.0.attn_k.weight"].read().reshape(4, 32, -1)
    live = load_file(tiny_llama / "model.safetensors")["model.layers.0.self_attn.k_proj.weight"]
    assert np.array_equal(file[:, keys.places], live.float().reshape(4, 32, -1).numpy())
    turned = x[..., torch.tensor(keys.places).argsort()]
    assert torch.equal(keys(x), keys.rounding(turned)[..., list(keys.places)])


def test_what_cannot_be_simulated_is_refused(original, text_file):
    def evaluate(name):
        fewbits.evaluate(original, original, text=text_file, context=32, chunks=1, threads=1, kv_cache=name)

    with pytest.raises(EvaluationError, match="unknown key-value cache"):
        evaluate("q3_0")
    with pytest.raises(EvaluationError, match="heads of 16"):
        evaluate("q8_0")


def test_a_model_without_keys_and_values_is_refused():
    config = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4)
    model = with_tokenizer(type("Folder", (), {"name": "mamba"}), MambaForCausalLM(config))

    with pytest.raises(EvaluationError, match="can't be simulated for mamba"):
        model.with_kv_cache("fp8").cache_bytes()
