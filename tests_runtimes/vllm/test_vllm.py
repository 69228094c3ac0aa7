"""Directories of several containers in vLLM's build for CPUs, which computes with bfloat16 activations.

What that costs is measured on the unquantized model, in the same run, and allowed for; the rest must be our weights.
"""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

DRIVER = Path(__file__).parents[2] / "src" / "fewbits" / "runtimes" / "vllm_driver.py"
# Activations are rounded to 8 bits as well: where bfloat16 changes one a little, its code may be another one, which
# costs as much as the rounding itself. So they may differ by a larger share of what the whole quantization costs.
ROUNDED_INPUTS = ("INT8_CHANNEL_SYM", "FP8_E4M3_CHANNEL", "MODELOPT_FP8")


@pytest.fixture(scope="module")
def driver():
    """The driver as fewbits runs it."""
    spec = importlib.util.spec_from_file_location(DRIVER.stem, DRIVER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def floor(driver, kl):
    """What bfloat16 costs: KL divergence of the unquantized model in vLLM from the same in float32."""
    folder = Path(os.environ["FEWBITS_ARTIFACTS"]) / "vllm" / "BF16"
    expected = np.load(folder / "expected.npz")
    return kl(expected["original"], driver.logits(str(folder / "model"), expected["tokens"].tolist()))


def test_logits_are_those_of_our_weights(artifact, compare, driver, floor):
    folder, expected = artifact
    tokens = expected["tokens"].tolist()
    logits = driver.logits(str(folder), tokens)

    assert logits.shape == expected["original"].shape
    (first,) = driver.generate(str(folder), tokens, 1)
    assert logits[-1, first] == logits[-1].max()
    rounded = folder.parent.name in ROUNDED_INPUTS
    share = 0.3 if rounded else 0.05
    compare(logits, expected, share=share, floor=3 * floor, of="runtime" if rounded else "quantized")
