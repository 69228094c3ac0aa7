"""Directories of several containers in vLLM's build for CPUs, which computes with bfloat16 activations.

What that costs is measured on the unquantized model, in the same run, and allowed for; the rest must be our weights.
"""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

DRIVER = Path(__file__).parents[2] / "src" / "fewbits" / "runtimes" / "vllm_driver.py"
# What it has no kernel for on CPUs, and says so. Its kernels for quantized experts need AMX, or AMD's package zentorch.
REFUSED = {
    "INT8_G128_SYM": "CPUWNA16",
    "NVFP4": "NVFP4|NvFp4",
    "MXFP4_PACKED": "MXFP4",
    "MODELOPT_NVFP4": "NVFP4|NvFp4",
    "MODELOPT_INT4_G128": "W4A16_NVFP4",  # it lists the algorithms that it reads
    "INT4_G32_SYM_model=qwen3_moe": "No WNA16 MoE backend",
    "INT8_CHANNEL_SYM_model=qwen3_moe": "No Int8 MoE backend",
}


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
    folder = Path(os.environ["FEWBITS_ARTIFACTS"]) / "vllm" / "BF16_unquantized"
    expected = np.load(folder / "expected.npz")
    return kl(expected["original"], driver.logits(str(folder / "model"), expected["tokens"].tolist()))


def test_logits_are_those_of_our_weights(artifact, driver, floor, kl):
    folder, expected = artifact
    tokens = expected["tokens"].tolist()
    if folder.parent.name.endswith("_refused"):
        with pytest.raises(Exception, match=REFUSED[folder.parent.name.removesuffix("_refused")]):
            driver.logits(str(folder), tokens)
        return
    logits = driver.logits(str(folder), tokens)

    assert logits.shape == expected["original"].shape
    (first,) = driver.generate(str(folder), tokens, 1)
    assert logits[-1, first] == logits[-1].max()
    cost = kl(expected["original"], expected["quantized"])
    # Where activations are rounded too, bfloat16 turns some of their codes over, and more of them layer by layer: the
    # same noise drawn anew. So it is its size that is compared.
    noise = kl(expected["quantized"], expected["runtime"])
    apart = kl(expected["quantized"], logits)
    print(
        f"\n{folder.parent.name}: {apart:.2e} from our weights, which cost {cost:.2e}; rounding activations costs "
        f"{noise:.2e} by our evaluation, bfloat16 {floor:.2e} in the unquantized model"
    )
    assert apart <= 0.005 * cost + 1.5 * noise + 3 * floor
