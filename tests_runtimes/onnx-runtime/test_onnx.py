"""Folders for ONNX Runtime in onnxruntime-genai, and their graphs in onnxruntime.

The row isn't called onnx: a folder of that name is imported in the place of the package.
"""


def test_the_graph_computes_our_weights(artifact, compare, driver):
    folder, expected = artifact

    logits = driver("onnxruntime").logits(str(folder), expected["tokens"].tolist())

    compare(logits, expected, share=1e-3, floor=1e-6)


def test_it_generates_with_activations_of_8_bits(artifact, compare, driver, kl):
    folder, expected = artifact
    runtime, tokens = driver("onnxruntime_genai"), expected["tokens"].tolist()

    logits = runtime.logits(str(folder), tokens)

    # What rounding activations costs is known from our own rounding; which way each falls isn't.
    rounded = kl(expected["quantized"], expected["runtime"])
    compare(logits, expected, share=0, floor=2 * rounded)
    assert runtime.generate(str(folder), tokens, 4)[0] == logits[-1].argmax()
