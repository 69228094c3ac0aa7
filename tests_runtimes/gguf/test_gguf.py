"""GGUF files in llama.cpp."""


def test_logits_are_those_of_our_weights_and_it_generates(artifact, compare, driver):
    path, expected = artifact
    runtime, tokens = driver("llama_cpp"), expected["tokens"].tolist()

    logits = runtime.logits(str(path), tokens)

    # Both round activations to 8 bits in blocks; sums in another order turn some codes over.
    # At 8 bits that rounding is most of what is lost.
    share = 1.0 if path.parent.name == "Q8_0" else 0.1
    compare(logits, expected, of="runtime", share=share)
    assert runtime.generate(str(path), tokens, 3)[0] == logits[-1].argmax()
