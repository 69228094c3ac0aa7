"""compressed-tensors directories in transformers."""

import pytest


def test_logits_are_those_of_our_weights_and_it_generates(artifact, compare, driver, kl):
    folder, expected = artifact
    runtime, tokens = driver("transformers"), expected["tokens"].tolist()

    logits = runtime.logits(str(folder), tokens)

    # Integer activations: the package takes 255 steps, we and vLLM take 254. Two roundings that share no
    # code are twice as far from each other as each from none; tests/export compares with the package's own rule.
    rounding = kl(expected["quantized"], expected["runtime"])
    compare(logits, expected, of="runtime", floor=max(2 * rounding, 1e-5))
    if runtime.arithmetic(str(folder)) == "bfloat16":
        pytest.skip("bfloat16's logits have ties")
    assert runtime.generate(str(folder), tokens, 3)[0] == logits[-1].argmax()
