"""NBITS and QDQ8 against ONNX Runtime's operators, which own these layouts."""

import numpy as np
import pytest

from fewbits.formats.registry import get_format
from format_properties import (
    check_chunks,
    check_columns,
    check_finite,
    check_packing,
    check_refuses_uneven_rows,
    hard_weights,
    heavy_tailed,
    quantize,
)

NAMES = ["NBITS4_G32", "NBITS4_G16_SYM", "NBITS8_G32", "NBITS8_G64_SYM", "QDQ8"]
# Three groups of 32: at 4 bits a row's zero points end within a byte.
ODD = ["NBITS4_G32", "NBITS4_G32_SYM", "NBITS8_G32", "QDQ8"]


def runtime_values(fmt, parts, shape):
    """What the operator multiplies the unit matrix with, float32 [N, K]."""
    ort, onnx = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
    helper, (rows, columns) = onnx.helper, shape
    arrays = dict(parts)
    if fmt.name == "QDQ8":
        nodes = [
            helper.make_node("DequantizeLinear", ["codes", "scales"], ["w"], axis=0),
            helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "t"], ["y"]),
        ]
    else:
        arrays["codes"] = parts["codes"].reshape(rows, columns // fmt.block, -1)
        arrays["scales"] = parts["scales"].astype(np.float32)
        attributes = {
            "K": columns,
            "N": rows,
            "bits": fmt.width,
            "block_size": fmt.block,
            "accuracy_level": 1,
        }
        nodes = [helper.make_node("MatMulNBits", ["x", *arrays], ["y"], domain="com.microsoft", **attributes)]
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, None]) for name in "xy")
    stored = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    versions = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], stored), opset_imports=versions, ir_version=10
    )
    options = ort.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.eye(columns, dtype=np.float32)})[0].T


@pytest.mark.parametrize("name", ODD)
def test_it_computes_our_values(name):
    fmt, weight = get_format(name), heavy_tailed(21, 96)
    codes, params, decoded = quantize(fmt, weight)

    theirs = runtime_values(fmt, fmt.pack(codes, params), weight.shape)

    np.testing.assert_array_equal(theirs, decoded)


@pytest.mark.parametrize("name", NAMES)
def test_packing(name):
    fmt, weight = get_format(name), heavy_tailed(7, 192)

    check_packing(fmt, *quantize(fmt, weight))
    check_chunks(fmt, weight)
    check_columns(fmt, weight)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", hard_weights(64))
def test_hard_weights(name, kind):
    check_finite(get_format(name), hard_weights(64)[kind])


def test_rows_that_no_group_divides():
    check_refuses_uneven_rows(get_format("NBITS4_G128"), 192)

    assert get_format("NBITS4_G128").fallback == "NBITS4_G64"
