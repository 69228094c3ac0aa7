"""Folders for ONNX Runtime in onnxruntime-genai, and their graphs in onnxruntime.

The row isn't called onnx: a folder of that name is imported in the place of the package.
"""

import importlib.util
from pathlib import Path

from conftest import kl

DRIVERS = Path(__file__).parents[2] / "src" / "fewbits" / "runtimes"


def driver(name):
    """The driver of this name, as a module."""
    spec = importlib.util.spec_from_file_location(name, DRIVERS / f"{name}_driver.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_graph_computes_our_weights(artifact, compare):
    folder, expected = artifact

    logits = driver("onnxruntime").logits(str(folder), expected["tokens"].tolist())

    compare(logits, expected, share=1e-3, floor=1e-6)


def test_it_generates_with_activations_of_8_bits(artifact, compare):
    folder, expected = artifact
    runtime, tokens = driver("onnxruntime_genai"), expected["tokens"].tolist()

    logits = runtime.logits(str(folder), tokens)

    # What rounding activations costs is known from our own rounding; which way each falls isn't.
    rounded = kl(expected["quantized"], expected["runtime"])
    compare(logits, expected, share=0, floor=2 * rounded)
    assert runtime.generate(str(folder), tokens, 4)[0] == logits[-1].argmax()
