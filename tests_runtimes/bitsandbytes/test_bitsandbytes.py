"""bitsandbytes directories in transformers, not quantized again, and trained with PEFT."""

import bitsandbytes
import peft
import torch
from transformers import AutoModelForCausalLM

LINEAR = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)


def load(folder, dtype=torch.float32):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    assert isinstance(model.model.layers[0].mlp.down_proj, LINEAR)
    return model


def test_logits_are_those_of_our_weights(artifact, compare):
    folder, expected = artifact
    model = load(folder)

    with torch.no_grad():
        logits = model(torch.tensor(expected["tokens"])[None]).logits[0].float().numpy()

    # With 8 bits, sums are float16 there, which turns some codes of the next activations over.
    exact = "INT8" not in folder.parent.name
    compare(logits, expected, of="runtime", share=0.1 if exact else 1.0)


def test_a_lora_learns(artifact):
    folder, expected = artifact
    model = peft.prepare_model_for_kbit_training(load(folder), use_gradient_checkpointing=False)
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    tokens = torch.tensor(expected["tokens"])[None]

    losses = []
    for _ in range(4):
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))

    print(f"\n{folder.parent.name}: losses of four steps {losses}")
    assert losses[-1] < 0.9 * losses[0]
