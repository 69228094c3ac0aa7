"""MLX directories in mlx-lm's build for CPUs."""


def test_logits_are_those_of_our_weights_and_it_generates(artifact, compare, driver):
    folder, expected = artifact
    runtime, tokens = driver("mlx_lm"), expected["tokens"].tolist()

    logits = runtime.logits(str(folder), tokens)

    # Scales and biases too, exactly: what remains is the arithmetic of activations.
    compare(logits, expected, share=1e-3, floor=1e-6)
    assert runtime.generate(str(folder), tokens, 4)[0] == logits[-1].argmax()
