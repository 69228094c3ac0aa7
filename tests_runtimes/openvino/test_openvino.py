"""OpenVINO's graphs in its plugin for CPUs, and generation by openvino-genai."""

import sys
from pathlib import Path

import numpy as np
import openvino

sys.path.insert(0, str(Path(__file__).parents[2] / "src" / "fewbits" / "runtimes"))
import openvino_driver

from fewbits.checkpoint.source import open_checkpoint
from fewbits.evaluation.language_model import load_language_model

GENERATED, ALONE = 4, 16


def compressed(folder):
    """Names of the runtime's products, and element types of their weights."""
    compiled = openvino.Core().compile_model(folder / "openvino_model.xml", "CPU", openvino_driver.EXACT)
    found = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        layer = node.get_rt_info()["layerType"]
        if str(getattr(layer, "value", layer)) == "FullyConnected":
            found[node.get_friendly_name()] = node.input_value(1).get_element_type().get_type_name()
    return found


def test_logits_are_those_of_our_weights(artifact, compare):
    folder, expected = artifact

    held = compressed(folder)

    assert len(held) == 7 * 3 + 1
    assert set(held.values()) <= {"i4", "u4", "i8", "u8"}
    compare(
        openvino_driver.logits(str(folder), expected["tokens"].tolist(), openvino_driver.EXACT),
        expected,
        1e-3,
    )


def test_inputs_of_8_bits_are_those_that_evaluation_computes(converted):
    """Token by token: an input between two numbers may be rounded to the other, and changes all that follows."""
    directory, output, expected = converted
    settings = {**openvino_driver.EXACT, "DYNAMIC_QUANTIZATION_GROUP_SIZE": "32"}
    ours = load_language_model(open_checkpoint(directory), "runtime")
    apart = []
    for token in expected["tokens"].tolist()[:ALONE]:
        rounded, exact = (next(iter(m.logits([token], 0)))[0] for m in (ours, ours.with_float_activations()))
        found = openvino_driver.logits(str(output), [token], settings)[0]
        apart.append(float(np.abs(found - rounded).max() / np.abs(exact - rounded).max()))

    print(
        "\nlogits of single tokens differ by", ", ".join(f"{x:.1e}" for x in apart), "of what rounding costs"
    )
    assert np.median(apart) < 1e-3


def test_it_generates(artifact):
    folder, expected = artifact
    tokens = expected["tokens"].tolist()

    answer = openvino_driver.generate(str(folder), tokens, GENERATED)

    assert len(answer) == GENERATED
    logits = openvino_driver.logits(str(folder), tokens)[-1]
    # The pipeline's own arithmetic has 16 bits: of two tokens that are nearly as likely it may choose the other.
    assert logits[answer[0]] >= logits.max() - 0.05 * np.std(logits)
