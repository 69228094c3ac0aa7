"""ModelOpt directories unpacked by ModelOpt's own code, which are the weights that fewbits computes with."""


def test_its_unpacked_weights_give_our_logits(artifact, compare, driver):
    folder, expected = artifact

    logits = driver("modelopt").logits(str(folder), expected["tokens"].tolist())

    compare(logits, expected, share=0, floor=1e-9)
