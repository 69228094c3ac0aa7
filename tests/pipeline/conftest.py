"""What the tests of calibration's benefit share: text that it hasn't seen, and the loss on it."""

import numpy as np
import pytest

import fewbits


@pytest.fixture(scope="module")
def few_tokens(tmp_path_factory):
    """Calibrated runs of the module share a cache, and take as many tokens as a tiny model needs and its text has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWBITS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("fewbits.pipeline.calibrate.TOKENS", {"balanced": 4096, "best": 4096})
        yield patch


@pytest.fixture(scope="session")
def unseen(sample_text, tmp_path_factory):
    """The same words as in `sample_text` in another order, which calibration hasn't seen."""
    words = sample_text.read_text(encoding="utf-8").split(" ")
    order = np.random.default_rng(1).permutation(len(words))
    path = tmp_path_factory.mktemp("unseen") / "unseen.txt"
    path.write_text(" ".join(words[i] for i in order), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def kl(unseen):
    """A function: the mean KL divergence of a quantized model from its source on unseen text, weights alone."""

    def measured(quantized, source):
        return fewbits.evaluate(
            quantized, source, text=unseen, context=128, chunks=6, activations="float"
        ).kl_mean

    return measured
