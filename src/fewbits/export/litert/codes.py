"""Our codes and scales in a .tflite, by ai-edge-quantizer, and back.

    weight   INT8 or INT4 [N, K]; INT4: two in a byte, the first in its low half
    scales   of rows: float32, in the tensor's quantization; of groups: a tensor FLOAT16 [N, G], with blockSize

ai-edge-quantizer decides how such tensors, their scales and their operators are written. What it calls an algorithm is
here a look-up: the constant's content says which weight it is.
Source: TensorFlow Lite's schema (QuantizationParameters, BlockwiseQuantization).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_quantizer import algorithm_manager, qtyping, quantizer
from ai_edge_quantizer.algorithms.uniform_quantize import common_quantize, dequantized_weight_recovery
from ai_edge_quantizer.utils import tfl_flatbuffer_utils

from fewbits.checkpoint.checkpoint import Floats, LazyTensor
from fewbits.checkpoint.packed import PackedTensor
from fewbits.checkpoint.recently import Recently
from fewbits.errors import ExportError, VerificationError

# Its recipes know no algorithms but its own: this is the one whose place the look-up takes.
_ALGORITHM = algorithm_manager.AlgorithmName.DEQUANTIZED_WEIGHT_RECOVERY
_ELEMENTS = 1 << 22
_OPERATORS = {
    qtyping.TFLOperationName.FULLY_CONNECTED: common_quantize.materialize_fc_conv,
    qtyping.TFLOperationName.EMBEDDING_LOOKUP: common_quantize.materialize_embedding_lookup,
}
_unpacked: Recently[Floats] = Recently(2)


def put_codes(graph: Path, output: Path, weights: Mapping[str, PackedTensor]) -> dict[str, str]:
    """Write a float32 .tflite again with the weights quantized; name of each weight -> its tensor's name.

    Raises:
        ExportError: a weight isn't among the graph's constants.
    """
    owners: dict[str, list[str]] = {}
    for name, tensor in weights.items():
        owners.setdefault(_digest(tensor.chunks(_ELEMENTS)), []).append(name)
    sizes = {4 * t.matrix[0] * t.matrix[1] for t in weights.values()}
    placed = _constants(graph, owners, sizes)
    if missing := sorted(set(weights) - set(placed)):
        raise ExportError(
            "weights aren't among the constants of litert-torch's graph", found=", ".join(missing[:3]),
            action="litert-torch 0.10.0 is known to work; compare your version",
        )  # fmt: skip
    work = quantizer.Quantizer(str(graph))
    for operator in _OPERATORS:
        work.add_dynamic_config(".*", operator, 8, algorithm_key=_ALGORITHM)
    with _looked_up({key: weights[names[0]] for key, names in owners.items()}):
        work.quantize().export_model(str(output), overwrite=True)
    return placed


def _constants(graph: Path, owners: Mapping[str, list[str]], sizes: set[int]) -> dict[str, str]:
    """The tensors that hold weights of ours, by the weights' names; `sizes` are the weights' bytes in float32."""
    model = tfl_flatbuffer_utils.read_model(str(graph))
    placed: dict[str, str] = {}
    found: dict[int, list[str]] = {}
    for subgraph in model.subgraphs:
        for tensor in subgraph.tensors:
            data = model.buffers[tensor.buffer].data
            if data is None or len(data) not in sizes or tensor.type != qtyping.TensorType.FLOAT32:
                continue
            if tensor.buffer not in found:
                found[tensor.buffer] = owners.get(hashlib.sha256(memoryview(data)).hexdigest(), [])
                placed |= dict.fromkeys(found[tensor.buffer], tensor.name.decode())
    return placed


@contextmanager
def _looked_up(weights: Mapping[str, PackedTensor]) -> Iterator[None]:
    """While this lasts, the algorithm that recovers codes from dequantized weights looks them up."""
    _register(functools.partial(_parameters, weights))
    try:
        yield
    finally:
        _register(dequantized_weight_recovery.get_tensor_quant_params)


def _register(parameters: Callable[..., Any]) -> None:
    for operator, materialize in _OPERATORS.items():
        algorithm_manager.register_quantized_op(
            algorithm_key=_ALGORITHM,
            tfl_op_name=operator,
            init_qsv_func=dequantized_weight_recovery.init_qsvs,
            calibration_func=dequantized_weight_recovery.calibrate,
            materialize_func=functools.partial(materialize, parameters),
        )


def _parameters(
    weights: Mapping[str, PackedTensor],
    operator: Any,
    config: Any,
    content: Any = None,
    statistics: Any = None,
) -> Any:
    """What ai-edge-quantizer writes for a constant: codes, scales and block of the weight that it is."""
    del operator, config, statistics
    tensor = None if content is None else weights.get(_digest([content]))
    if tensor is None:
        raise ExportError(
            "the graph multiplies by a matrix that the plan leaves in floating point",
            found="no shape" if content is None else list(content.shape),
            action="Give every linear layer, the embedding and the head a format of LiteRT",
        )
    whole = tensor.quantized(0, tensor.shape[0])
    fmt: Any = whole.format
    scale = whole.params.scale.reshape(tensor.shape[0], -1)  # type: ignore[attr-defined]
    codes = (whole.codes - np.uint8(1 << (fmt.width - 1))).view(np.int8)
    return qtyping.UniformQuantParams(
        num_bits=fmt.width,
        quantized_dimension=1 if fmt.block else 0,
        scale=scale,
        zero_point=np.zeros(scale.shape, np.int32),
        symmetric=True,
        quantized_data=codes,
        block_size=fmt.block,
    )


def _digest(pieces: Any) -> str:
    """Of numbers as float32."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(np.ascontiguousarray(piece, np.float32).data)
    return digest.hexdigest()


class TfliteTensor(LazyTensor):
    """A quantized constant of a .tflite."""

    dtype = "F32"

    def __init__(self, name: str, shape: tuple[int, ...], codes: Any, scales: Any, width: int) -> None:
        self.name, self.shape = name, shape
        self._codes, self._scales, self._width = codes, scales, width

    def rows(self, start: int, stop: int) -> Floats:
        """Rows start … stop, float32 [stop - start, K]."""
        return _unpacked.get(self, self._unpack)[start:stop].copy()

    def _unpack(self) -> Floats:
        packed = np.asarray(self._codes).view(np.uint8)
        if self._width == 4:
            packed = np.stack([packed << np.uint8(4), packed & np.uint8(0xF0)], axis=-1).reshape(-1)
            values = (packed.view(np.int8) >> 4).astype(np.float32)
        else:
            values = packed.view(np.int8).astype(np.float32)
        rows, columns = self.shape
        scales = self._scales.astype(np.float32).reshape(rows, -1)
        grouped = values[: rows * columns].reshape(rows, scales.shape[1], -1) * scales[:, :, None]
        whole: Floats = grouped.reshape(self.shape).astype(np.float32)
        return whole


def read_weights(model: Path, placed: Mapping[str, str]) -> dict[str, LazyTensor]:
    """The quantized weights of a .tflite, by the model's names; `placed` says which tensors they are.

    Raises:
        VerificationError: it doesn't read back, or lacks a weight.
    """
    try:
        held = tfl_flatbuffer_utils.read_model(str(model))
        found: dict[str, tuple[Any, Any]] = {}
        for subgraph in held.subgraphs:
            for tensor in subgraph.tensors:
                found.setdefault(tensor.name.decode(), (tensor, subgraph))
        return {name: _tensor(held, name, *found[where]) for name, where in placed.items()}
    except Exception as error:
        raise VerificationError(f"{model} doesn't read back", found=repr(error)) from error


def _tensor(held: Any, name: str, tensor: Any, subgraph: Any) -> TfliteTensor:
    width = {qtyping.TensorType.INT8: 8, qtyping.TensorType.INT4: 4}[tensor.type]
    details = tensor.quantization.details
    if details is None:
        scales = np.asarray(tensor.quantization.scale, np.float32)
    else:
        buffer = held.buffers[subgraph.tensors[details.scales].buffer]
        scales = np.asarray(buffer.data).view(np.float16)
    shape = tuple(int(n) for n in tensor.shape)
    return TfliteTensor(name, shape, held.buffers[tensor.buffer].data, scales, width)
