"""GGUF files in llama.cpp."""


def test_logits_are_those_of_our_weights_and_it_generates(artifact, compare, driver):
    path, expected = artifact
    runtime, tokens = driver("llama_cpp"), expected["tokens"].tolist()

    logits = runtime.logits(str(path), tokens)

    # Both round activations to 8 bits in blocks; sums in another order turn some codes over.
    compare(logits, expected, of="runtime", share=0.1, floor=1e-4)
    assert runtime.generate(str(path), tokens, 3)[0] == logits[-1].argmax()
