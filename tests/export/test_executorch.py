"""What ExecuTorch's container needs no ExecuTorch for; tests_runtimes/executorch runs the programs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import fewbits
from fewbits.checkpoint.checkpoint import Checkpoint
from fewbits.checkpoint.source import open_checkpoint
from fewbits.errors import ArchitectureError, MissingExtraError
from fewbits.evaluation.activations import TOKEN_ROUNDING
from fewbits.export.executorch.converter import ExecutorchConverter, metadata_of
from fewbits.progress import Silent

DOWN = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def directory(tiny_llama, tmp_path_factory):
    output = tmp_path_factory.mktemp("made") / "out"
    plan = json.loads(fewbits.plan(tiny_llama, to="executorch-weights", format="XNN4_G32").to_json())
    plan["tensors"] |= {"model.embed_tokens.weight": "XNN8_CHANNEL", f"{DOWN}.weight": "XNN4_G128"}
    plan["tensors"]["model.layers.0.mlp.down_proj.weight"] = "XNN4_CHANNEL"
    output.parent.joinpath("plan.json").write_text(json.dumps(plan))
    fewbits.quantize(tiny_llama, output, to="executorch-weights", plan=output.parent / "plan.json")
    return output


def test_weights_by_xnnpacks_rule(directory):
    tensors = open_checkpoint(directory).tensors
    with safe_open(directory / "model.safetensors", "pt") as file:
        for module, name in ((DOWN, "XNN4_G128"), ("model.layers.0.mlp.down_proj", "XNN4_CHANNEL")):
            codes, scale = (file.get_tensor(f"{module}.{part}") for part in ("weight", "weight_scale"))
            nibbles = torch.stack([codes & 15, codes >> 4], -1).flatten(1).float() - 8
            wide = scale.float().reshape(len(codes), -1).repeat_interleave(512 // scale[0].numel(), 1)
            assert (scale > 0).all()
            assert tensors[f"{module}.weight"].dtype == name
            assert np.array_equal((nibbles * wide).numpy(), tensors[f"{module}.weight"].read())
        codes = file.get_tensor("model.embed_tokens.weight").float()
        scale = file.get_tensor("model.embed_tokens.weight_scale")
    assert np.array_equal((codes * scale[:, None]).numpy(), tensors["model.embed_tokens.weight"].read())


def test_inputs_are_rounded_with_a_zero_point_per_token():
    x = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)) + 0.7
    x[0], x[1] = 0.0, x[1].abs()
    rounded = TOKEN_ROUNDING["XNN4_G32"](x)
    low, high = x.amin(1, keepdim=True).clamp(max=0), x.amax(1, keepdim=True).clamp(min=0)
    step = (high - low) / 255

    # At the ends of the range the zero point, itself rounded, costs up to half a step more.
    assert ((rounded - x).abs() <= step * 1.001).all()
    assert 0.9 < 12 * ((rounded - x)[1:] / step[1:]).square().mean() < 1.1
    codes = rounded[1:] / step[1:]
    assert torch.allclose(codes, codes.round(), atol=2e-3)
    assert ((codes.amax(1) - codes.amin(1)).round() <= 255).all()
    assert (rounded[0] == 0).all()


def made_up(config, *names):
    """A checkpoint of which nothing but names and config is looked at."""
    return Checkpoint(Path(), "safetensors", dict.fromkeys(names), (), config=config)


def test_experts_and_models_that_were_not_tried_are_refused():
    converter = ExecutorchConverter()
    with pytest.raises(ArchitectureError, match=r"mixtures of experts.*--to gguf"):
        converter.check(made_up({"model_type": "mixtral"}, "model.layers.0.mlp.experts.0.w1.weight"))
    with pytest.raises(ArchitectureError, match=r"wasn't tried.*mamba.*allowed: llama"):
        converter.check(made_up({"model_type": "mamba"}, "model.layers.0.mixer.in_proj.weight"))
    long = {"model_type": "phi3", "rope_scaling": {"type": "longrope"}}
    with pytest.raises(ArchitectureError, match=r"length of the text.*longrope"):
        converter.check(made_up(long, "model.layers.0.mlp.down_proj.weight"))
    converter.check(made_up({"model_type": "llama"}, "model.layers.0.mlp.up_proj.weight"))


def test_the_context_stays_within_the_sliding_window():
    converter = ExecutorchConverter(context=1024)
    assert converter.context_of(made_up({"model_type": "mistral", "max_position_embeddings": 4096})) == 1024
    assert converter.context_of(made_up({"max_position_embeddings": 4096, "sliding_window": 512})) == 512
    assert converter.context_of(made_up({"max_position_embeddings": 256, "sliding_window": None})) == 256


def test_runners_learn_what_the_program_is(tiny_llama):
    found = metadata_of(open_checkpoint(tiny_llama), 256)
    assert found == {
        "get_max_seq_len": 255, "get_max_context_len": 256, "get_vocab_size": 384, "get_eos_ids": [0],
        "get_n_layers": 3, "use_kv_cache": True, "use_sdpa_with_kv_cache": True, "enable_dynamic_shape": True,
    }  # fmt: skip


def test_a_missing_extra_is_named_and_nothing_is_written(directory, tmp_path, monkeypatch):
    converter = ExecutorchConverter()
    monkeypatch.setattr(converter, "packages", ("a_package_that_is_not_there",))
    with pytest.raises(MissingExtraError, match=r"pip install 'fewbits\[executorch\]'"):
        converter.convert(open_checkpoint(directory), tmp_path, Silent())
    assert not list(tmp_path.iterdir())
