"""OpenVINO's graphs in its plugin for CPUs, and generation by openvino-genai."""

import sys
from pathlib import Path

import numpy as np
import openvino

sys.path.insert(0, str(Path(__file__).parents[2] / "src/fewbits/runtimes"))
import openvino_driver

GENERATED = 4


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


def test_inputs_of_8_bits_are_those_that_evaluation_computes(artifact):
    """Until some input lies between two numbers: rounded to the other, it changes all tokens from there on."""
    folder, expected = artifact
    settings = {**openvino_driver.EXACT, "DYNAMIC_QUANTIZATION_GROUP_SIZE": "32"}

    found = openvino_driver.logits(str(folder), expected["tokens"].tolist(), settings)

    apart = np.abs(found - expected["runtime"]).max(-1)
    rounding = np.abs(expected["quantized"] - expected["runtime"]).max(-1)
    assert apart[0] < 0.001 * rounding[0]


def test_it_generates(artifact):
    folder, expected = artifact
    tokens = expected["tokens"].tolist()

    answer = openvino_driver.generate(str(folder), tokens, GENERATED)

    assert len(answer) == GENERATED
    logits = openvino_driver.logits(str(folder), tokens)[-1]
    # The pipeline's own arithmetic has 16 bits: of two tokens that are nearly as likely it may choose the other.
    assert logits[answer[0]] >= logits.max() - 0.05 * np.std(logits)
