"""AWQ directories in transformers with GPTQModel's kernels for CPUs."""


def test_logits_are_those_of_our_weights(artifact, compare, gptqmodel_logits):
    folder, expected = artifact

    compare(gptqmodel_logits(folder, expected["tokens"]), expected)
