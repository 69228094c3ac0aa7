"""Formats put into a template's graph: packed weights instead of float ones, and where their bytes lie.

    NBITS   MatMul(x, W)      →  MatMulNBits(x, codes, Cast(scales), zero_points)
            Gather(W, ids)    →  GatherBlockQuantized(Reshape(codes), ids, Cast(scales), zero_points)
    QDQ     MatMul(x, W)      →  MatMul(x, Transpose(DequantizeLinear(codes, scales)))
            Gather(W, ids)    →  Mul(Cast(Gather(codes, ids)), Gather(scales, ids))
    static  MatMul(x, W)      →  MatMul(DequantizeLinear(QuantizeLinear(x)), DequantizeLinear(Transpose(codes), scales))

Weights in floating point lie as the model has them, [N, K], and are transposed, cast or shifted by nodes that ONNX
Runtime computes once, when it loads the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any

from fewbits.checkpoint.onnx_folder import (
    DATA,
    PIECES,
    SHAPES,
    StoredPiece,
    input_scale_name,
    tensor_regions,
)
from fewbits.errors import ArchitectureError, PlanError
from fewbits.export.exporter import WHOLE, Region
from fewbits.export.onnx.template import Template, Weight
from fewbits.formats import get_format
from fewbits.formats.format import Format
from fewbits.formats.nbits import CODES, SCALES, ZERO_POINTS, NBitsFormat
from fewbits.formats.qdq import QDQFormat, QDQStaticFormat

# Activations are rounded to 8 bits, a scale per block, as the model builder has it for CPUs.
ACCURACY_LEVEL = 4
_DOMAIN = "com.microsoft"
_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1, "I8": 1}


@dataclass(frozen=True)
class Written:
    """A graph with its weights' places.

    Attributes:
        graph: the serialized ModelProto.
        parts: tensor -> part -> region of the data file.
        size: of the data file.
    """

    graph: bytes
    parts: Mapping[str, Mapping[str, Region]]
    size: int


@dataclass(frozen=True)
class _Array:
    """An initializer: parts of tensors, one after another."""

    name: str
    part: str
    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[StoredPiece, ...]

    @property
    def nbytes(self) -> int:
        return sum(piece.nbytes for piece in self.pieces)


def write_graph(
    template: Template,
    formats: Mapping[str, str],
    texts: Mapping[str, str],
    input_scales: Mapping[str, Callable[[str], float] | None] = MappingProxyType({}),
) -> Written:
    """The graph for some formats.

    Args:
        template: the graph without weights.
        formats: parameter -> format or dtype.
        texts: its metadata.
        input_scales: parameter -> what finds the scale of its map's inputs for a format, as `OutputTensor.input_scale`.

    Raises:
        ArchitectureError: an operator that fewbits can't give such a weight, or a weight that isn't stored once.
        FormatError: a format whose block doesn't divide the rows.
        PlanError: weights that the graph has joined, in several formats.
    """
    import onnx

    model = onnx.load_model_from_string(template.graph)
    rewriter = _Rewriter(template, formats, input_scales)
    nodes = [made for node in model.graph.node for made in rewriter.rewritten(node)]
    kept = [i for i in model.graph.initializer if i.name not in template.weights]
    known = [v for v in model.graph.value_info if v.name not in template.weights]
    placed, size = _place(list(rewriter.arrays.values()))
    _replace(model.graph.node, nodes)
    _replace(model.graph.value_info, known)
    _replace(model.graph.initializer, [*kept, *rewriter.constants, *(_external(a, at) for a, at in placed)])
    pieces = {array.name: list(array.pieces) for array, _ in placed}
    try:
        places = tensor_regions({array.name: at for array, at in placed}, pieces)
    except ValueError as error:
        raise ArchitectureError(
            "the graph doesn't hold each weight once, in one run", found=str(error),
            action="Choose another container",
        ) from error  # fmt: skip
    parts = {t: {p: Region(*place, DATA) for p, place in found.items()} for t, found in places.items()}
    shapes = {name: (formats[name], template.shapes[name]) for name in template.shapes if name in places}
    described = {
        PIECES: {n: [tuple(vars(p).values()) for p in found] for n, found in pieces.items()},
        SHAPES: shapes,
    }
    compact = {key: json.dumps(value, separators=(",", ":")) for key, value in described.items()}
    onnx.helper.set_model_props(model, {**texts, **compact})
    model.producer_name = "fewbits"
    return Written(model.SerializeToString(deterministic=True), parts, size)


def _replace(field: Any, values: Sequence[Any]) -> None:
    del field[:]
    field.extend(values)


def _place(arrays: list[_Array]) -> tuple[list[tuple[_Array, int]], int]:
    """Offsets without gaps: wider numbers first, so that all are aligned; arrays that split one tensor together."""
    order = {array.name: i for i, array in enumerate(arrays)}
    placed, offset = [], 0
    for array in sorted(arrays, key=lambda a: (-_BYTES[a.dtype], a.part, order[a.name])):
        placed.append((array, offset))
        offset += array.nbytes
    return placed, offset


def _external(array: _Array, offset: int) -> Any:
    from onnx import TensorProto

    types = {"F32": TensorProto.FLOAT, "F16": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16,
             "U8": TensorProto.UINT8, "I8": TensorProto.INT8}  # fmt: skip
    proto = TensorProto(name=array.name, data_type=types[array.dtype], dims=array.shape)
    proto.data_location = TensorProto.EXTERNAL
    for key, value in (("location", DATA), ("offset", offset), ("length", array.nbytes)):
        proto.external_data.add(key=key, value=str(value))
    return proto


class _Rewriter:
    """Nodes of the template as they are with these formats.

    Attributes:
        arrays: initializers that hold the weights, by name.
        constants: small ones beside them.
    """

    def __init__(
        self,
        template: Template,
        formats: Mapping[str, str],
        input_scales: Mapping[str, Callable[[str], float] | None],
    ) -> None:
        self._weights, self._shapes, self._formats = template.weights, template.shapes, formats
        self._input_scales = input_scales
        self._made: set[str] = set()
        self._rounded: dict[str, int] = {}  # input -> how many products round it
        self.arrays: dict[str, _Array] = {}
        self.constants: list[Any] = []

    def rewritten(self, node: Any) -> list[Any]:
        """What takes the place of a node, in order.

        Raises:
            PlanError, ArchitectureError, FormatError: see `write_graph`.
        """
        result = []
        for position, name in enumerate(list(node.input)):
            weight = self._weights.get(name)
            if weight is None:
                continue
            formats = {self._formats[piece.parameter] for piece in weight.pieces}
            if len(formats) != 1:
                raise PlanError(
                    f"the graph holds {name} as one, in one format", found=", ".join(sorted(formats))
                )
            fmt = formats.pop()
            if fmt not in _BYTES:
                return self._quantized(node, name, weight, get_format(fmt))
            result += self._plain(node, position, name, weight, fmt)
        return [*result, node]

    def _quantized(self, node: Any, name: str, weight: Weight, fmt: Format[Any]) -> list[Any]:
        """The operators for a format; each takes the place of one node."""
        known = {("MatMul", True): {NBitsFormat: self._matmul_nbits, QDQFormat: self._matmul_qdq,
                                    QDQStaticFormat: self._matmul_static},
                 ("Gather", False): {NBitsFormat: self._gather_nbits, QDQFormat: self._gather_qdq,
                                     QDQStaticFormat: self._gather_qdq}}  # fmt: skip
        write: Any = known.get((node.op_type, weight.transposed), {}).get(type(fmt))
        if write is None:
            raise ArchitectureError(
                f"ONNX Runtime has no {node.op_type} with weights in {fmt.name}", found=name
            )
        made: list[Any] = write(node, weight, fmt)
        return made

    def _matmul_nbits(self, node: Any, weight: Weight, fmt: NBitsFormat) -> list[Any]:
        rows, columns = weight.shape
        codes, made, operands = self._nbits(weight, fmt)
        return [*made, self._node(
            "MatMulNBits", [node.input[0], codes, *operands], node, domain=_DOMAIN, K=columns, N=rows,
            bits=fmt.width, block_size=fmt.block, accuracy_level=ACCURACY_LEVEL,
        )]  # fmt: skip

    def _gather_nbits(self, node: Any, weight: Weight, fmt: NBitsFormat) -> list[Any]:
        rows, columns = weight.shape
        codes, made, operands = self._nbits(weight, fmt)
        shape = self._constant(f"{codes}/shape", [rows, columns * fmt.width // 8])
        reshaped = self._once("Reshape", [codes, shape], f"{codes}/rows")
        return [*made, *reshaped, self._node(
            "GatherBlockQuantized", [f"{codes}/rows", node.input[1], *operands], node, domain=_DOMAIN,
            bits=fmt.width, block_size=fmt.block, gather_axis=0, quantize_axis=1,
        )]  # fmt: skip

    def _nbits(self, weight: Weight, fmt: NBitsFormat) -> tuple[str, list[Any], list[str]]:
        """Codes, nodes to be computed once, and the operands after the codes and the input."""
        from onnx import TensorProto

        rows, columns = weight.shape
        groups = columns // fmt.block_of(columns)
        codes = self._part(weight, fmt, CODES, (rows, groups, fmt.block * fmt.width // 8))
        scales = self._part(weight, fmt, SCALES, (rows, groups))
        made = self._once("Cast", [scales], f"{scales}/float", to=TensorProto.FLOAT)
        if fmt.symmetric:
            return codes, made, [f"{scales}/float"]
        zeros = self._part(weight, fmt, ZERO_POINTS, (rows, -(-groups * fmt.width // 8)))
        return codes, made, [f"{scales}/float", zeros]

    def _matmul_qdq(self, node: Any, weight: Weight, fmt: QDQFormat) -> list[Any]:
        codes = self._part(weight, fmt, CODES, weight.shape)
        scales = self._part(weight, fmt, SCALES, weight.shape[:1])
        made = self._once("DequantizeLinear", [codes, scales], f"{codes}/float", axis=0)
        made += self._once("Transpose", [f"{codes}/float"], f"{codes}/transposed", perm=[1, 0])
        return [*made, self._node("MatMul", [node.input[0], f"{codes}/transposed"], node)]

    def _matmul_static(self, node: Any, weight: Weight, fmt: QDQStaticFormat) -> list[Any]:
        """Both factors straight from DequantizeLinear, by which products of integers are recognised."""
        codes = self._part(weight, fmt, CODES, weight.shape)
        scales = self._part(weight, fmt, SCALES, weight.shape[:1])
        scale = self._constant(input_scale_name(codes), self._input_scale(weight, fmt))
        zero = self._constant("constant/zero", 0, "int8")
        x = node.input[0]
        rounded = f"{x}/{scale}"
        # ONNX Runtime shares the codes of products with the same inputs, and then multiplies floating-point numbers. It
        # doesn't take operators for the same that have another axis, which says nothing where there is one scale.
        axis = self._rounded.get(x, 0)
        self._rounded[x] = axis + 1
        return [
            *self._once("Transpose", [codes], f"{codes}/transposed", perm=[1, 0]),
            *self._once("DequantizeLinear", [f"{codes}/transposed", scales], f"{codes}/float", axis=1),
            *self._once("QuantizeLinear", [x, scale, zero], f"{rounded}/codes", axis=axis),
            *self._once("DequantizeLinear", [f"{rounded}/codes", scale, zero], f"{rounded}/float"),
            self._node("MatMul", [f"{rounded}/float", f"{codes}/float"], node),
        ]

    def _input_scale(self, weight: Weight, fmt: QDQStaticFormat) -> float:
        """That of the map's inputs; parameters that the graph joins have the same inputs."""
        find = self._input_scales.get(weight.pieces[0].parameter)
        if find is None:
            raise PlanError(
                f"{fmt.name} has a scale of activations in the file, which calibration finds",
                found="no calibration", action="Use --effort balanced, or a format without",
            )  # fmt: skip
        return float(find(fmt.name))

    def _gather_qdq(self, node: Any, weight: Weight, fmt: QDQFormat) -> list[Any]:
        from onnx import TensorProto

        codes = self._part(weight, fmt, CODES, weight.shape)
        scales = self._part(weight, fmt, SCALES, weight.shape[:1])
        ids, last = node.input[1], self._constant("constant/last_axis", [-1])
        return [
            *self._once("Gather", [codes, ids], f"{codes}/rows", axis=0),
            *self._once("Gather", [scales, ids], f"{scales}/rows", axis=0),
            *self._once("Cast", [f"{codes}/rows"], f"{codes}/rows/float", to=TensorProto.FLOAT),
            *self._once("Unsqueeze", [f"{scales}/rows", last], f"{scales}/rows/column"),
            self._node("Mul", [f"{codes}/rows/float", f"{scales}/rows/column"], node),
        ]

    def _plain(self, node: Any, position: int, name: str, weight: Weight, dtype: str) -> list[Any]:
        """Nodes that make of a weight in floating point what a node takes as its input `position`."""
        from onnx import TensorProto

        width = prod(weight.shape[1:]) * _BYTES[dtype]
        stored = current = self._array(weight, WHOLE, dtype, weight.shape, width)
        made: list[Any] = []
        if dtype != "F32":
            made += self._once("Cast", [current], f"{stored}/float", to=TensorProto.FLOAT)
            current = f"{stored}/float"
        constants = {piece.constant for piece in weight.pieces}
        if constants != {0.0}:
            if len(constants) > 1:
                raise ArchitectureError("the graph adds several constants to one weight", found=name)
            constant = constants.pop()
            added = self._constant(f"constant/{constant}", float(constant))
            made += self._once("Add", [current, added], f"{stored}/plus")
            current = f"{stored}/plus"
        if weight.transposed:
            made += self._once("Transpose", [current], f"{stored}/transposed", perm=[1, 0])
            current = f"{stored}/transposed"
        node.input[position] = current
        return made

    def _part(self, weight: Weight, fmt: Format[Any], part: str, shape: tuple[int, ...]) -> str:
        """The initializer with one part of a format."""
        layout = fmt.parts(weight.shape)[part]
        return self._array(weight, part, layout.dtype, shape, layout.nbytes // weight.shape[0])

    def _array(self, weight: Weight, part: str, dtype: str, shape: tuple[int, ...], row_bytes: int) -> str:
        """The initializer with a part of these rows, made once; its name."""
        first = weight.pieces[0]
        whole = first.start == 0 and first.stop == self._shapes[first.parameter][0]
        base = first.parameter.removesuffix(".weight") + ("" if whole else f".{first.start}-{first.stop}")
        name = f"{base}.{'weight' if part == WHOLE else part}"
        pieces = tuple(
            StoredPiece(p.parameter, part, p.start, row_bytes * (p.stop - p.start)) for p in weight.pieces
        )
        if name not in self.arrays:
            self.arrays[name] = _Array(name, part, dtype, shape, pieces)
        elif self.arrays[name].pieces != pieces:
            raise ArchitectureError("the graph holds a weight twice, beside different others", found=name)
        return name

    def _constant(self, name: str, value: Any, integers: str = "int64") -> str:
        import numpy as np
        from onnx import numpy_helper

        if name not in {constant.name for constant in self.constants}:
            dtype = "float32" if isinstance(value, float) else integers
            self.constants.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def _once(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> list[Any]:
        """A node that several others share."""
        from onnx import helper

        if output in self._made:
            return []
        self._made.add(output)
        return [helper.make_node(op, list(inputs), [output], name=f"fewbits/{output}", **attributes)]

    def _node(self, op: str, inputs: Sequence[str], replaced: Any, **attributes: Any) -> Any:
        from onnx import helper

        return helper.make_node(op, list(inputs), list(replaced.output), name=replaced.name, **attributes)
