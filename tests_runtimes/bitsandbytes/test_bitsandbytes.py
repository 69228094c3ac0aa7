"""bitsandbytes directories in transformers, not quantized again, and trained with PEFT."""

import bitsandbytes
import peft
import torch
from transformers import AutoModelForCausalLM

LINEAR = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)


def test_logits_are_those_of_our_weights_and_it_generates(artifact, compare, driver):
    folder, expected = artifact
    runtime, tokens = driver("transformers"), expected["tokens"].tolist()

    logits = runtime.logits(str(folder), tokens)

    # With 8 bits, sums are float16 there, which turns some codes of the next activations over.
    exact = "INT8" not in folder.parent.name
    compare(logits, expected, of="runtime", share=0.1 if exact else 1.0)
    assert runtime.generate(str(folder), tokens, 3)[0] == logits[-1].argmax()


def test_a_lora_learns(artifact):
    folder, expected = artifact
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert isinstance(model.model.layers[0].mlp.down_proj, LINEAR)
    model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
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
