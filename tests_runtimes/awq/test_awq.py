"""AWQ directories in transformers with GPTQModel's kernels for CPUs."""


def test_logits_are_those_of_our_weights_and_it_generates(artifact, compare, driver):
    folder, expected = artifact
    runtime, tokens = driver("gptqmodel"), expected["tokens"].tolist()

    logits = runtime.logits(str(folder), tokens)

    compare(logits, expected)
    assert runtime.generate(str(folder), tokens, 3)[0] == logits[-1].argmax()
