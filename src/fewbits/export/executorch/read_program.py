"""What a .pte file's weights are, read from the file: the delegates' constants and those of the embedding's operator.

    program ─► instructions of "forward"
                 call of a delegate  ─► XNNPACK's graph ─► fully connected: codes and scales by key ─► named data
                 call of a kernel    ─► embedding_4bit, embedding_byte: codes and scales ─► constants

ExecuTorch's own parser of the file and its flatbuffers compiler do the parsing. Source: executorch's schema/program.fbs
and backends/xnnpack/serialization/schema.fbs.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import executorch.backends.xnnpack.serialization as xnnpack_schema
import numpy as np
import numpy.typing as npt
from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader
from executorch.exir._serialize._flatbuffer import _flatc_decompile
from executorch.exir._serialize._program import PTEFile, deserialize_pte_binary
from executorch.exir.scalar_type import ScalarType
from executorch.exir.schema import DelegateCall, KernelCall

from fewbits.errors import VerificationError
from fewbits.export.executorch.program_weights import StoredMatrix, StoredWeights
from fewbits.formats.bit_packing import unpack_nibbles
from fewbits.formats.minifloat import bfloat16_values

# XNNPACK's types of weights: bits, and whether scales are bfloat16 by group
_TYPES = {
    "xnn_datatype_qbint4": (4, True),
    "xnn_datatype_qcint4": (4, False),
    "xnn_datatype_qcint8": (8, False),
}
_EMBEDDINGS = {"quantized_decomposed::embedding_4bit": 4, "quantized_decomposed::embedding_byte": 8}


def read_program(file: Path) -> StoredWeights:
    """Parse a .pte file.

    Raises:
        VerificationError: it isn't one, or not as this version of ExecuTorch writes it.
    """
    try:
        parsed = deserialize_pte_binary(file.read_bytes())
        return _collect(parsed)
    except (KeyError, ValueError, IndexError, AttributeError, AssertionError, OSError) as error:
        raise VerificationError(
            f"{file} doesn't read back", found=f"{type(error).__name__}: {error}"
        ) from error


def _collect(parsed: PTEFile) -> StoredWeights:
    plan = next(plan for plan in parsed.program.execution_plan if plan.name == "forward")
    found = StoredWeights([], [], 0, [], _constants(parsed))
    floating = 0
    for instruction in plan.chains[0].instructions:
        call = instruction.instr_args
        if isinstance(call, DelegateCall):
            place = plan.delegates[call.delegate_index].processed
            graph = _xnnpack_graph(bytes(parsed.program.backend_delegate_data[place.index].data))
            for matrix in _fully_connected(graph, parsed):
                if matrix is None:
                    floating += 1
                else:
                    found.linear.append(matrix)
        elif isinstance(call, KernelCall):
            operator = plan.operators[call.op_index]
            found.kernels.append(operator.name)
            if operator.name in _EMBEDDINGS:
                rows, scale = (plan.values[index].val for index in call.args[:2])
                found.embeddings.append(_embedding(_EMBEDDINGS[operator.name], rows, scale, parsed))
    return replace(found, floating=floating)


def _constants(parsed: PTEFile) -> dict[str, bytes]:
    named = [] if parsed.named_data is None else [bytes(b) for b in parsed.named_data.buffers]
    own = []
    plan = next(plan for plan in parsed.program.execution_plan if plan.name == "forward")
    for value in plan.values:
        index = getattr(value.val, "data_buffer_idx", 0)
        if index and value.val.scalar_type == ScalarType.FLOAT and value.val.allocation_info is None:
            data = bytes(parsed.program.constant_buffer[index].storage)
            own.append(data[: 4 * math.prod(value.val.sizes)])  # the rest is padding
    return {hashlib.sha256(data).hexdigest(): data for data in (*named, *own)}


def _xnnpack_graph(data: bytes) -> Mapping[str, Any]:
    """A delegate's graph as its schema's JSON."""
    header = XNNHeader.from_bytes(data[: XNNHeader.EXPECTED_LENGTH])
    payload = data[header.flatbuffer_offset : header.flatbuffer_offset + header.flatbuffer_size]
    with tempfile.TemporaryDirectory() as folder:
        schema, binary = Path(folder, "schema.fbs"), Path(folder, "graph.bin")
        schema.write_bytes(importlib.resources.files(xnnpack_schema).joinpath("schema.fbs").read_bytes())
        binary.write_bytes(payload)
        _flatc_decompile(folder, str(schema), str(binary), ["--raw-binary"])
        graph: Mapping[str, Any] = json.loads(Path(folder, "graph.json").read_bytes())
        return graph


def _fully_connected(graph: Mapping[str, Any], parsed: PTEFile) -> Iterator[StoredMatrix | None]:
    """Weights of a delegate's fully connected layers in order; None for those in floating point."""
    assert parsed.named_data is not None
    by_id = {_tensor_of(value)["id_out"]: value["xvalue_union"] for value in graph["xvalues"]}
    for node in graph["xnodes"]:
        if node["xnode_union_type"] != "XNNFullyConnected":
            continue
        weight = by_id[node["xnode_union"]["filter_id"]]
        tensor = weight.get("tensor_value", weight)
        if tensor["datatype"] not in _TYPES:
            yield None
            continue
        width, grouped = _TYPES[tensor["datatype"]]
        codes = _named(graph, parsed, tensor["constant_buffer_idx"])
        scales = _named(graph, parsed, weight["quant_params"]["scale_buffer_idx"])
        yield _matrix(width, tensor["dims"], codes, scales, grouped=grouped)


def _tensor_of(value: Mapping[str, Any]) -> Mapping[str, Any]:
    union = value["xvalue_union"]
    tensor: Mapping[str, Any] = union.get("tensor_value", union)
    return tensor


def _named(graph: Mapping[str, Any], parsed: PTEFile, index: int) -> bytes:
    """A constant of a delegate."""
    assert parsed.named_data is not None
    place = graph["constant_data"][index]
    entry = parsed.named_data.pte_data[place["named_key"]]
    return bytes(parsed.named_data.buffers[entry.buffer_index])[: place["size"]]


def _matrix(width: int, dims: list[int], codes: bytes, scales: bytes, *, grouped: bool) -> StoredMatrix:
    rows, columns = dims
    raw = np.frombuffer(codes, np.uint8)
    packed = raw.reshape(rows, -1)
    whole = unpack_nibbles(packed, columns) if width == 4 else packed + np.uint8(128)
    scale = bfloat16_values(np.frombuffer(scales, "<u2")) if grouped else np.frombuffer(scales, "<f4")
    return StoredMatrix(width, whole, scale.reshape(rows, -1).astype(np.float32))


def _embedding(width: int, rows: Any, scale: Any, parsed: PTEFile) -> StoredMatrix:
    """An embedding's rows and scales; 4-bit rows have the even column in the high nibble."""
    raw = _constant(rows, parsed, np.dtype(np.uint8))
    if width == 4:
        even_low = raw >> np.uint8(4) | raw << np.uint8(4)
        whole = unpack_nibbles(even_low, 2 * raw.shape[1])
    else:
        whole = raw + np.uint8(128)
    return StoredMatrix(width, whole, _constant(scale, parsed, np.dtype("<f4")).reshape(len(raw), -1))


def _constant(tensor: Any, parsed: PTEFile, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """A constant of the program."""
    data = bytes(parsed.program.constant_buffer[tensor.data_buffer_idx].storage)
    count = math.prod(tensor.sizes)
    return np.frombuffer(data, dtype, count).reshape(tensor.sizes)
