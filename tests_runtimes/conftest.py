"""What the tests of all runtimes share: artifacts, drivers, and how near a runtime's logits must be."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
DRIVERS = Path(__file__).parent.parent / "src" / "fewbits" / "runtimes"


def pytest_generate_tests(metafunc):
    """One test for each format of the row."""
    if "artifact" in metafunc.fixturenames:
        folder = Path(metafunc.module.__file__).parent
        names = ["_".join(line.split()[1:]) for line in (folder / "formats.txt").read_text().splitlines()]
        metafunc.parametrize("artifact", [folder.name + "/" + name for name in names], indirect=True)


@pytest.fixture
def artifact(request):
    """Folder of the model, and the expected numbers."""
    folder = Path(os.environ["FEWBITS_ARTIFACTS"]) / request.param
    return folder / "model", dict(np.load(folder / "expected.npz"))


@pytest.fixture
def converted(artifact):
    """Folder of the quantized directory, the folder that the row's library made of it, and the expected numbers."""
    output, expected = artifact
    return output.with_name("weights"), output, expected


@pytest.fixture(scope="session")
def driver():
    """A function: the driver of this name, as drive.py loads it."""

    def load(name):
        spec = importlib.util.spec_from_file_location(name, DRIVERS / f"{name}_driver.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def log_softmax(logits):
    """float64 [T, V]."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def kl(first, second):
    """Mean divergence of the second's predictions from the first's, nats per token."""
    p, q = log_softmax(first), log_softmax(second)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


@pytest.fixture(scope="session", name="kl")
def divergence():
    """The function `kl`."""
    return kl


@pytest.fixture
def compare(request):
    """Says how near logits [T, V] are to the expected ones, and fails where they aren't.

    `share` is the most that the runtime's own rounding may cost, against what the quantization costs; `of` says which
    of the expected logits are meant.
    """

    def check(logits, expected, share=0.1, floor=1e-5, of="quantized"):
        quantized, original = expected[of], expected["original"]
        ours, theirs = kl(original, quantized), kl(original, logits)
        apart = kl(quantized, logits)
        largest = np.abs(logits - quantized).max()
        print(
            f"\n{request.node.name}: KL to the original {theirs:.6f} in the runtime, {ours:.6f} by our weights; "
            f"between the two {apart:.2e}; largest difference of logits {largest:.4f}, "
            f"standard deviation {quantized.std():.3f}"
        )
        assert apart <= max(share * ours, floor)

    return check
