"""AWQ directories in transformers with GPTQModel's kernels for CPUs."""

import os

os.environ["GPTQMODEL_CPU_WORKERS"] = "2"  # its pool asks for two workers, also on small machines

import torch
from transformers import AutoModelForCausalLM


def test_logits_are_those_of_our_weights(artifact, compare):
    folder, expected = artifact

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16, device_map="cpu")

    layer = model.model.layers[0].mlp.down_proj
    assert "Linear" in type(layer).__name__
    assert type(layer) is not torch.nn.Linear
    with torch.no_grad():
        logits = model(torch.tensor([expected["tokens"]])).logits[0].float().numpy()
    compare(logits, expected)
