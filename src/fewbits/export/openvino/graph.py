"""Our codes and scales as constants of OpenVINO's graph, and back.

A weight [N, K] of the graph becomes what nncf.compress_weights makes of it, which plugins recognise and keep packed:

    Constant i4 | u4 | i8 | u8 [N, G, B] ─ Convert f16 ─ (Subtract) ─ Multiply ─ Reshape [N, K] ─ Convert f32
                                                             │           │
    zero points: Constant u4 | u8 [N, G, 1] ─ Convert f16 ───┘           │
    scales:      Constant f16 [N, G, 1] ─────────────────────────────────┘

With one scale a row the constants are [N, K] and [N, 1], and there is no Reshape. The scales are float16 because the
plugins' patterns are made for it: the codes' format has such scales, so nothing is lost. A plugin multiplies in the
type of its activations; in float32 what it computes are our dequantized weights, to the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino
from openvino import opset13 as opset

from fewbits.checkpoint.checkpoint import Floats, LazyTensor, StoredTensor
from fewbits.checkpoint.packed import PackedTensor
from fewbits.errors import ExportError, VerificationError
from fewbits.formats import get_format
from fewbits.formats.bit_packing import pack_bytes, unpack_bytes
from fewbits.formats.openvino import FORMATS, OpenvinoFormat

# Weights that are read at once.
_ELEMENTS = 1 << 22
# How optimum's graphs call a parameter of the model: `self.` and its name.
_PREFIX = "self."
_TYPES = {
    (4, True): openvino.Type.i4,
    (4, False): openvino.Type.u4,
    (8, True): openvino.Type.i8,
    (8, False): openvino.Type.u8,
}
_PLAIN = {"F32": openvino.Type.f32, "F16": openvino.Type.f16, "BF16": openvino.Type.bf16}
_WIDTHS = {openvino.Type.i4: 4, openvino.Type.u4: 4, openvino.Type.i8: 8, openvino.Type.u8: 8}
_SIGNED = (openvino.Type.i4, openvino.Type.i8)


def put_weights(model: Any, weights: Mapping[str, LazyTensor]) -> None:
    """Replace constants of a graph by ours.

    Args:
        model: openvino.Model, whose constants carry the names of the model's parameters.
        weights: matrices by these names. Several names of one tensor share its constants.

    Raises:
        ExportError: the graph lacks a weight, or has it in another shape.
    """
    constants = {
        node.get_friendly_name().removeprefix(_PREFIX): node
        for node in model.get_ops()
        if node.get_type_name() == "Constant"
    }
    made: dict[str, Any] = {}
    for name, tensor in weights.items():
        node = constants.get(name)
        if node is None:
            continue
        if tuple(node.get_output_shape(0)) != tuple(tensor.shape):
            raise ExportError(
                f"optimum-intel's graph has {name} in another shape",
                found=list(node.get_output_shape(0)), allowed=list(tensor.shape),
            )  # fmt: skip
        if tensor.name not in made:
            made[tensor.name] = _subgraph(tensor, node.get_element_type())
        for target in node.output(0).get_target_inputs():
            target.replace_source_output(made[tensor.name].output(0))
    if missing := [t.name for t in weights.values() if t.name not in made]:
        raise ExportError(
            "optimum-intel's graph lacks weights of the model",
            found=", ".join(missing[:5]),
            action="Install the version of optimum-intel that fewbits[openvino] asks for",
        )
    model.validate_nodes_and_infer_types()


def _subgraph(tensor: LazyTensor, dtype: Any) -> Any:
    """Nodes that compute a weight [N, K] in the dtype that its readers expect."""
    if isinstance(tensor, PackedTensor):
        return _decompressed(tensor, dtype)
    stored = isinstance(tensor, StoredTensor) and tensor.dtype in _PLAIN
    constant = _Filled(_PLAIN[tensor.dtype] if stored else openvino.Type.f32, tensor.shape)
    for start, stop in _chunks(tensor):
        if stored:
            assert isinstance(tensor, StoredTensor)
            constant.append(tensor.raw(start, stop))
        else:
            constant.append(tensor.rows(start, stop))
    node = constant.node(tensor.name)
    return node if node.get_element_type() == dtype else opset.convert(node, dtype)


def _decompressed(tensor: PackedTensor, dtype: Any) -> Any:
    fmt = get_format(tensor.dtype)
    if not isinstance(fmt, OpenvinoFormat):
        raise ExportError(
            f"{tensor.name} is in a format that isn't OpenVINO's",
            found=tensor.dtype, allowed=", ".join(FORMATS),
        )  # fmt: skip
    rows, columns = tensor.shape
    groups = columns // fmt.block_of(columns)
    kind = _TYPES[fmt.width, fmt.symmetric]
    codes = _Filled(kind, (rows, groups, columns // groups) if fmt.block else (rows, columns))
    of_group = (rows, groups, 1) if fmt.block else (rows, 1)
    scales = _Filled(openvino.Type.f16, of_group)
    zeros = []
    for start, stop in _chunks(tensor):
        parts = tensor.quantized(start, stop).pack()
        codes.append(parts["codes"])
        scales.append(parts["scales"])
        if not fmt.symmetric:
            zeros.append(unpack_bytes(parts["zero_points"], fmt.width, groups))
    value = opset.convert(codes.node(tensor.name), openvino.Type.f16)
    if zeros:
        points = _zero_points(np.concatenate(zeros).reshape(-1), kind, of_group, f"{tensor.name}/zero_point")
        value = opset.subtract(value, opset.convert(points, openvino.Type.f16))
    value = opset.multiply(value, scales.node(f"{tensor.name}/scale"))
    if fmt.block:
        value = opset.reshape(value, np.array([rows, columns], np.int64), special_zero=False)
    return opset.convert(value, dtype)


def _zero_points(zeros: npt.NDArray[np.uint8], kind: Any, shape: tuple[int, ...], name: str) -> Any:
    """A constant of numbers that fill bytes without regard to rows."""
    constant = _Filled(kind, shape)
    constant.append(pack_bytes(zeros[None], _WIDTHS[kind]))
    return constant.node(name)


class _Filled:
    """A constant whose memory is the runtime's own, filled piece by piece."""

    def __init__(self, dtype: Any, shape: tuple[int, ...]) -> None:
        self._tensor = openvino.Tensor(dtype, openvino.Shape(list(shape)))
        # Packed numbers come as bytes; of all types the bytes are what is wanted.
        self._bytes = self._tensor.data.reshape(-1).view(np.uint8)
        self._used = 0

    def append(self, numbers: npt.NDArray[Any]) -> None:
        """The next numbers, as they are stored."""
        data = np.ascontiguousarray(numbers).reshape(-1).view(np.uint8)
        self._bytes[self._used : self._used + len(data)] = data
        self._used += len(data)

    def node(self, name: str) -> Any:
        """The constant."""
        assert self._used == len(self._bytes)
        return opset.constant(self._tensor, name=name, shared_memory=True)


def _chunks(tensor: LazyTensor) -> list[tuple[int, int]]:
    rows, columns = tensor.matrix
    step = max(1, _ELEMENTS // max(columns, 1))
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


class GraphWeight(LazyTensor):
    """A compressed weight of a graph, as the graph computes it from its constants.

    Attributes:
        name: of the constant that holds the codes.
        shape: of the weight.
        dtype: of the codes, as OpenVINO calls it.
    """

    def __init__(self, codes: Any, zeros: Any | None, scales: Any) -> None:
        shape = tuple(codes.get_output_shape(0))
        self.name = codes.get_friendly_name()
        self.shape = (shape[0], prod(shape[1:]))
        self.dtype = codes.get_element_type().get_type_name()
        self._codes = codes
        groups = (self.shape[0], shape[1] if len(shape) == 3 else 1)
        self._scales = np.array(scales.data, np.float32).reshape(groups)
        self._zeros = 0.0 if zeros is None else _numbers(zeros, 0, prod(groups)).reshape(groups)[:, :, None]

    def rows(self, start: int, stop: int) -> Floats:
        """Rows start … stop of the weight, float32 [stop - start, K]."""
        columns = self.shape[1]
        codes = _numbers(self._codes, start * columns, stop * columns)
        scales = self._scales[start:stop, :, None]
        zeros = self._zeros if isinstance(self._zeros, float) else self._zeros[start:stop]
        values: Floats = (codes.reshape(stop - start, scales.shape[1], -1) - zeros) * scales
        return values.reshape(stop - start, columns)


def _numbers(constant: Any, start: int, stop: int) -> Floats:
    """Numbers start … stop of an integer constant, as float32."""
    dtype = constant.get_element_type()
    stored: npt.NDArray[np.uint8] = constant.data.reshape(-1).view(np.uint8)  # packed numbers come as bytes
    width = _WIDTHS[dtype]
    first, last = start * width // 8, -(-stop * width // 8)
    numbers = unpack_bytes(stored[None, first:last], width, (last - first) * 8 // width).reshape(-1)
    skipped = start - first * 8 // width
    numbers = numbers[skipped : skipped + stop - start]
    if dtype not in _SIGNED:
        without: Floats = numbers.astype(np.float32)
        return without
    signed = (numbers << np.uint8(8 - width)).view(np.int8) >> np.int8(8 - width)
    with_sign: Floats = signed.astype(np.float32)
    return with_sign


def read_weights(path: Path) -> dict[str, LazyTensor]:
    """The compressed weights of a graph, by the names of the constants that hold their codes.

    Raises:
        VerificationError: it isn't a graph that OpenVINO reads.
    """
    try:
        model = openvino.Core().read_model(path)
    except RuntimeError as error:
        raise VerificationError(
            f"{path} doesn't read back", found=str(error).strip().splitlines()[0]
        ) from error
    found: dict[str, LazyTensor] = {}
    for node in model.get_ops():
        if node.get_type_name() == "Multiply" and (weight := _weight_of(node)) is not None:
            found[weight.name] = weight
    return found


def _weight_of(multiply: Any) -> GraphWeight | None:
    """The weight whose last factor this is, if it is one."""
    value, scales = _inputs(multiply)
    zeros = None
    if value.get_type_name() == "Subtract":
        value, converted = _inputs(value)
        if converted.get_type_name() != "Convert":
            return None
        zeros = _inputs(converted)[0]
    if value.get_type_name() != "Convert" or scales.get_type_name() != "Constant":
        return None
    codes = _inputs(value)[0]
    if codes.get_type_name() != "Constant" or codes.get_element_type() not in _WIDTHS:
        return None
    return GraphWeight(codes, zeros, scales)


def _inputs(node: Any) -> list[Any]:
    return [source.get_node() for source in node.input_values()]
