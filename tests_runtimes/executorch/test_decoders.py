"""Decoders before they are exported, and single layers after: where nothing but our numbers and roundings can differ.

A whole program can't be held to this: a float that differs in its last bit moves some inputs to the next of 256 steps,
and after a few layers the rounding errors of two runtimes have little in common.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import fewbits
import tiny_models
from fewbits.checkpoint.source import open_checkpoint
from fewbits.evaluation.activations import TOKEN_ROUNDING
from fewbits.evaluation.language_model import load_language_model
from fewbits.export.executorch.converter import ExecutorchConverter
from fewbits.export.executorch.decoder import build_decoder
from fewbits.export.executorch.layers import QuantizedLinear
from fewbits.export.executorch.program import lower
from fewbits.formats import get_format
from fewbits.formats.format import QTensor

NAMES = ["llama-llama3-rope", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma3_text", "smollm3"]


def write_tokenizer(folder):
    """A tokenizer that nobody asks anything."""
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


@pytest.mark.parametrize("name", NAMES)
def test_token_by_token_is_what_transformers_computes_at_once(name, tmp_path):
    tiny_models.save(tiny_models.TINY_MODELS[name], tmp_path / "model")
    write_tokenizer(tmp_path / "model")
    fewbits.quantize(
        tmp_path / "model", tmp_path / "out", to="executorch-weights", format="XNN4_G32", effort="fast"
    )
    quantized = open_checkpoint(tmp_path / "out")
    converter = ExecutorchConverter()
    converter.check(quantized)
    context = converter.context_of(quantized)
    tokens = tiny_models.sample_tokens()[: min(20, context - 1)]
    expected = np.concatenate(list(load_language_model(quantized, "runtime").logits(tokens, 0)))

    decoder, _ = build_decoder(quantized, context)
    steps = [decoder(torch.tensor([[token]]), torch.tensor([i])) for i, token in enumerate(tokens)]
    found = torch.cat(steps, 1)[0].detach().numpy()

    assert np.abs(found - expected).max() < 1e-4 * expected.std()
    whole = decoder(torch.tensor([tokens]), torch.tensor([0])).detach().numpy()
    assert np.abs(whole[0, 0] - expected[-1]).max() < 1e-4 * expected.std()


@pytest.mark.parametrize("name", ["XNN4_G32", "XNN4_G256", "XNN4_CHANNEL", "XNN8_CHANNEL"])
def test_a_layer_is_our_weights_times_our_rounding(name, tmp_path):
    from executorch.runtime import Runtime

    fmt, generator = get_format(name), np.random.default_rng(0)
    weight = generator.standard_normal((48, 256)).astype(np.float32)
    blocks = weight.reshape(-1, fmt.block or 256)
    params = fmt.fit(blocks)
    held = QTensor(fmt, weight.shape, fmt.round(blocks, params).reshape(weight.shape), params)
    tokens = torch.export.Dim("tokens", max=255)
    graph = torch.export.export(
        QuantizedLinear(held, None).eval(),
        (torch.zeros(1, 3, 256),),
        dynamic_shapes=({1: tokens},),
        strict=False,
    )
    lower(graph, {}).save(str(tmp_path / "layer.pte"))
    layer = Runtime.get().load_program(tmp_path / "layer.pte").load_method("forward")

    # Each unit vector is rounded without loss, so this is the weight that the kernel has packed.
    identity = torch.eye(256)[None, :200]
    ours = torch.from_numpy(held.dequantize())
    assert torch.allclose(layer.execute((identity,))[0][0], ours.T[:200], rtol=1e-6, atol=0)

    x = torch.from_numpy(generator.standard_normal((1, 64, 256)).astype(np.float32)) + 0.3
    found, exact, rounded = layer.execute((x,))[0], x @ ours.T, TOKEN_ROUNDING[name](x) @ ours.T
    assert (found - rounded).norm() < 1e-3 * (exact - rounded).norm()
