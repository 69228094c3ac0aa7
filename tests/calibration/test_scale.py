"""Statistics predict, in nats per token, what a small error in a matrix costs."""

import numpy as np
import pytest
import torch

from fewbits.calibration.gather import gather
from fewbits.calibration.statistics import quadratic_loss
from fewbits.calibration.store import StatisticsStore
from fewbits.checkpoint.source import open_checkpoint
from fewbits.progress import Silent


@pytest.fixture(scope="module")
def statistics(make_model, tokens, tmp_path_factory):
    """A function: model name to its store."""
    made = {}

    def of(name):
        if name not in made:
            store = StatisticsStore(tmp_path_factory.mktemp("statistics") / "store")
            gather(open_checkpoint(make_model(name)), tokens, store, memory=None, progress=Silent())
            made[name] = store
        return made[name]

    return of


def measured(directory, tokens, name, error):
    """Mean KL divergence per token of adding an error to a parameter, in float32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    ids = torch.from_numpy(tokens.blocks)
    parameter, _, expert = name.partition("#")
    with torch.no_grad():
        before = model(ids, use_cache=False).logits.double().log_softmax(-1)
        matrix = model.get_parameter(parameter)
        (matrix[int(expert)] if expert else matrix).add_(torch.from_numpy(error))
        after = model(ids, use_cache=False).logits.double().log_softmax(-1)
    return float((before.exp() * (before - after)).sum(-1).mean())


CASES = [
    ("llama", "model.layers.0.self_attn.v_proj.weight"),
    ("llama", "model.layers.1.self_attn.o_proj.weight"),
    ("llama", "model.layers.1.mlp.down_proj.weight"),
    ("llama", "model.layers.2.mlp.gate_proj.weight"),
    ("llama", "lm_head.weight"),
    ("llama", "model.embed_tokens.weight"),
    ("llama-llama3-rope", "model.embed_tokens.weight"),
    ("gemma2", "model.layers.1.mlp.up_proj.weight"),
    ("gemma2", "model.embed_tokens.weight"),
    ("gemma3_text", "model.layers.3.self_attn.o_proj.weight"),
    ("granite", "model.embed_tokens.weight"),
    ("smollm3", "model.layers.4.mlp.down_proj.weight"),
    ("phi3", "model.layers.0.mlp.gate_up_proj.weight"),
    ("olmo2", "lm_head.weight"),
    ("qwen3_moe", "model.layers.2.mlp.experts.down_proj#2"),
    ("granitemoe", "model.layers.1.block_sparse_moe.experts.gate_up_proj#1"),
    ("mixtral", "model.layers.2.mlp.experts.gate_up_proj#0"),
]


@pytest.mark.parametrize(("model", "name"), CASES)
def test_predicted_loss_is_the_measured_one(statistics, make_model, tokens, model, name):
    found = statistics(model).load(name)
    shape = len(found.row_importance), len(found.second_moment)
    error = np.random.default_rng(5).standard_normal(shape).astype(np.float32)
    # An error that costs about 1e-4 nats: the quadratic term is all that counts.
    error *= np.sqrt(1e-4 / quadratic_loss(error, found.second_moment, found.row_importance))
    predicted = quadratic_loss(error, found.second_moment, found.row_importance)
    held_out = quadratic_loss(error, found.held_out, found.row_importance)
    truth = measured(make_model(model), tokens, name, error)
    assert 0.5 < predicted / truth < 2, (predicted, truth)
    assert 0.5 < held_out / predicted < 2
    assert found.row_importance.mean() == pytest.approx(1, abs=1e-4)
    np.testing.assert_array_equal(found.second_moment, found.second_moment.T)


def test_every_matrix_of_the_blocks_has_statistics(statistics, make_model):
    checkpoint = open_checkpoint(make_model("llama"))
    matrices = {name for name, tensor in checkpoint.tensors.items() if len(tensor.shape) == 2}
    assert set(statistics("llama").names()) == matrices
