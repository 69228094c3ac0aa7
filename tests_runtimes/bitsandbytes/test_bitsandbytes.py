"""bitsandbytes directories in transformers, not quantized again, and trained with PEFT."""

import bitsandbytes
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

LINEAR = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
# With 4 bits, weights are bfloat16 once they are unpacked. With 8 bits, sums are scaled by 6.200124e-05 rather than by
# 1 / 127**2; that turns a few codes of the next layer's activations over, each by as much as rounding ever changes one,
# and more of them layer by layer: the same noise, drawn anew. Single layers are held to far less below.
SHARES = {"NF4": 0.01, "BNB_INT8": 0.5}


def load(folder):
    """In float32 whatever isn't quantized: transformers keeps the file's dtype instead, whichever it is asked for."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert isinstance(model.model.layers[0].mlp.down_proj, LINEAR)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype == torch.bfloat16:
            tensor.data = tensor.data.float()
    for layer in model.modules():
        if isinstance(layer, bitsandbytes.nn.Linear4bit):
            layer.compute_dtype = torch.float32
            layer.compute_type_is_set = True  # else the first input would choose it
    return model


def test_logits_are_those_of_our_weights_and_it_generates(artifact, compare, driver):
    folder, expected = artifact
    runtime, tokens = driver("transformers"), expected["tokens"].tolist()

    logits = runtime.logits(str(folder), tokens)

    compare(logits, expected, of="runtime", share=SHARES[folder.parent.name])
    assert runtime.generate(str(folder), tokens, 3)[0] == logits[-1].argmax()


def test_a_layer_of_8_bits_computes_by_the_rule_of_our_evaluation(artifact):
    folder, expected = artifact
    if folder.parent.name != "BNB_INT8":
        pytest.skip("4-bit weights are multiplied with activations as they are")
    model, apart = load(folder), {}

    def check(name, layer, inputs, output):
        x = inputs[0].reshape(-1, inputs[0].shape[-1])
        half = x.half().float()
        beyond = half.abs() >= 6
        kept = half.masked_fill(beyond, 0)
        largest = kept.abs().amax(dim=1, keepdim=True)
        codes = (kept * (127 / largest)).round()
        rounded = torch.where(beyond.any(dim=0), half, codes * (largest / 127))
        weight = layer.state.CB.float() * (layer.state.SCB[:, None] / 127)
        ours = rounded @ weight.T
        apart[name] = float((output.reshape(ours.shape) - ours).norm() / ours.norm())
        noise = float((x @ weight.T - ours).norm() / ours.norm())
        assert apart[name] < 0.01 * noise, name

    for name, layer in model.named_modules():
        if isinstance(layer, bitsandbytes.nn.Linear8bitLt):
            layer.register_forward_hook(lambda layer, x, y, name=name: check(name, layer, x, y))
    with torch.no_grad():
        model(torch.tensor(expected["tokens"])[None])
    print(f"\n{max(apart.values()):.1e} of the output at most, in {max(apart, key=apart.get)}")
    assert len(apart) == 21


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
