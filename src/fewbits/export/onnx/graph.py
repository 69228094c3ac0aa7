"""Formats put into a template's graph: packed weights instead of float ones, and where their bytes lie.

    MatMul(x, W)      →  MatMulNBits(x, codes, Cast(scales), zero_points)
    Gather(W, ids)    →  GatherBlockQuantized(Reshape(codes), ids, Cast(scales), zero_points)

Weights in floating point lie as the model has them, [N, K], and are transposed, cast or shifted by nodes that ONNX
Runtime computes once, when it loads the model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from fewbits.errors import ArchitectureError
from fewbits.export.exporter import WHOLE, Region
from fewbits.export.onnx.template import GRAPH, Template, Weight
from fewbits.formats import get_format
from fewbits.formats.nbits import CODES, SCALES, ZERO_POINTS, NBitsFormat

DATA = f"{GRAPH}.data"
PLACES, SHAPES = "fewbits.places", "fewbits.shapes"
# Activations are rounded to 8 bits, a scale per block, as the model builder has it for CPUs.
ACCURACY_LEVEL = 4
_DOMAIN = "com.microsoft"
_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1}


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


@dataclass
class _Array:
    """An initializer: its tensors' parts, one after another."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: list[tuple[str, str, int]] = field(default_factory=list)  # tensor, part, bytes


def write_graph(template: Template, formats: Mapping[str, str], texts: Mapping[str, str]) -> Written:
    """The graph for these formats (parameter -> format or dtype), with texts as its metadata.

    Raises:
        ArchitectureError: an operator that fewbits can't give such a weight.
        FormatError: a format whose block doesn't divide the rows.
    """
    import onnx

    model = onnx.load_model_from_string(template.graph)
    arrays: dict[str, _Array] = {}
    nodes: list[Any] = []
    rewriter = _Rewriter(template, formats, arrays)
    for node in model.graph.node:
        nodes += rewriter.rewritten(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    kept = [i for i in model.graph.initializer if i.name not in template.weights]
    known = [v for v in model.graph.value_info if v.name not in template.weights]
    for field_, values in ((model.graph.initializer, kept), (model.graph.value_info, known)):
        del field_[:]
        field_.extend(values)
    model.graph.initializer.extend(rewriter.shapes)
    placed, size = _place(list(arrays.values()))
    places: dict[str, dict[str, tuple[str, int, int]]] = {}
    parts: dict[str, dict[str, Region]] = {}
    for array, offset in placed:
        model.graph.initializer.append(_external(array, offset))
        start = offset
        for tensor, part, nbytes in array.pieces:
            parts.setdefault(tensor, {})[part] = Region(start, nbytes, DATA)
            places.setdefault(tensor, {})[part] = (array.name, start - offset, nbytes)
            start += nbytes
    shapes = {name: (formats[name], shape) for name, shape in template.shapes.items()}
    described = {PLACES: places, SHAPES: shapes}
    compact = {key: json.dumps(value, separators=(",", ":")) for key, value in described.items()}
    onnx.helper.set_model_props(model, {**texts, **compact})
    model.producer_name = "fewbits"
    return Written(model.SerializeToString(deterministic=True), parts, size)


def _place(arrays: list[_Array]) -> tuple[list[tuple[_Array, int]], int]:
    """Offsets without gaps; wider numbers go first, so that all are aligned."""
    placed, offset = [], 0
    for array in sorted(arrays, key=lambda a: -_BYTES[a.dtype]):
        placed.append((array, offset))
        offset += sum(nbytes for _, _, nbytes in array.pieces)
    return placed, offset


def _external(array: _Array, offset: int) -> Any:
    from onnx import TensorProto

    types = {"F32": TensorProto.FLOAT, "F16": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16,
             "U8": TensorProto.UINT8}  # fmt: skip
    proto = TensorProto(name=array.name, data_type=types[array.dtype], dims=array.shape)
    proto.data_location = TensorProto.EXTERNAL
    length = sum(nbytes for _, _, nbytes in array.pieces)
    for key, value in (("location", DATA), ("offset", offset), ("length", length)):
        proto.external_data.add(key=key, value=str(value))
    return proto


class _Rewriter:
    """Nodes of the template as they are with these formats."""

    def __init__(self, template: Template, formats: Mapping[str, str], arrays: dict[str, _Array]) -> None:
        self._weights, self._shapes, self._formats = template.weights, template.shapes, formats
        self._arrays = arrays
        self._made: set[str] = set()
        self.shapes: list[Any] = []

    def rewritten(self, node: Any) -> list[Any]:
        """What takes the place of a node, in order."""
        result = []
        for position, name in enumerate(list(node.input)):
            weight = self._weights.get(name)
            if weight is None:
                continue
            formats = {self._formats[piece] for piece, _ in weight.pieces}
            if len(formats) != 1:
                raise ArchitectureError(
                    f"the graph holds {name} as one, in one format", found=sorted(formats)
                )
            fmt = formats.pop()
            if fmt in _BYTES:
                result += self._plain(node, position, name, weight, fmt)
            else:
                return self._quantized(node, name, weight, get_format(fmt))
        return [*result, node]

    def _array(self, weight: Weight, part: str, dtype: str, shape: tuple[int, ...], share: Any) -> str:
        """The initializer with a part of these parameters, made once."""
        base = weight.pieces[0][0].removesuffix(".weight")
        name = f"{base}.{'weight' if part == WHOLE else part}"
        if name not in self._arrays:
            pieces = [(piece, part, share(self._shapes[piece])) for piece, _ in weight.pieces]
            self._arrays[name] = _Array(name, dtype, shape, pieces)
        elif [p for p, _, _ in self._arrays[name].pieces] != [p for p, _ in weight.pieces]:
            raise ArchitectureError("the graph holds a weight twice, beside different others", found=name)
        return name

    def _once(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> list[Any]:
        from onnx import helper

        if output in self._made:
            return []
        self._made.add(output)
        return [helper.make_node(op, list(inputs), [output], name=f"fewbits/{output}", **attributes)]

    def _plain(self, node: Any, position: int, name: str, weight: Weight, dtype: str) -> list[Any]:
        from onnx import TensorProto

        stored = self._array(weight, WHOLE, dtype, weight.shape, lambda shape: prod(shape) * _BYTES[dtype])
        current, made = stored, []
        if dtype != "F32":
            made += self._once("Cast", [current], f"{stored}/float", to=TensorProto.FLOAT)
            current = f"{stored}/float"
        constants = {constant for _, constant in weight.pieces}
        if constants != {0.0}:
            if len(constants) > 1:
                raise ArchitectureError("the graph adds several constants to one weight", found=name)
            constant = constants.pop()
            self._constant(f"constant/{constant}", constant)
            made += self._once("Add", [current, f"constant/{constant}"], f"{stored}/plus")
            current = f"{stored}/plus"
        if weight.transposed:
            made += self._once("Transpose", [current], f"{stored}/transposed", perm=[1, 0])
            current = f"{stored}/transposed"
        node.input[position] = current
        return made

    def _constant(self, name: str, value: Any) -> None:
        import numpy as np
        from onnx import numpy_helper

        if name not in {shape.name for shape in self.shapes}:
            dtype = np.float32 if isinstance(value, float) else np.int64
            self.shapes.append(numpy_helper.from_array(np.array(value, dtype), name))

    def _quantized(self, node: Any, name: str, weight: Weight, fmt: NBitsFormat) -> list[Any]:
        from onnx import TensorProto, helper

        rows, columns = weight.shape
        groups = columns // fmt.block_of(columns)
        layouts = {piece: fmt.parts(self._shapes[piece]) for piece, _ in weight.pieces}

        def part(key: str, dtype: str, shape: tuple[int, ...]) -> str:
            shares = {self._shapes[piece]: layouts[piece][key].nbytes for piece in layouts}
            return self._array(weight, key, dtype, shape, lambda s: shares[s])

        codes = part(CODES, "U8", (rows, groups, fmt.block * fmt.width // 8))
        scales = part(SCALES, "F16", (rows, groups))
        zeros = []
        if not fmt.symmetric:
            zeros = [part(ZERO_POINTS, "U8", (rows, -(-groups * fmt.width // 8)))]
        shared = {"domain": _DOMAIN, "bits": fmt.width, "block_size": fmt.block}
        if node.op_type == "MatMul" and weight.transposed:
            made = self._once("Cast", [scales], f"{scales}/float", to=TensorProto.FLOAT)
            inputs = [node.input[0], codes, f"{scales}/float", *zeros]
            return [*made, helper.make_node("MatMulNBits", inputs, list(node.output), name=node.name, K=columns,
                                            N=rows, accuracy_level=ACCURACY_LEVEL, **shared)]  # fmt: skip
        if node.op_type == "Gather" and not weight.transposed:
            shape = f"{codes}/shape"
            self._constant(shape, [rows, columns * fmt.width // 8])
            made = self._once("Reshape", [codes, shape], f"{codes}/rows")
            made += self._once("Cast", [scales], f"{scales}/float", to=TensorProto.FLOAT)
            inputs = [f"{codes}/rows", node.input[1], f"{scales}/float", *zeros]
            return [*made, helper.make_node("GatherBlockQuantized", inputs, list(node.output), name=node.name,
                                            gather_axis=0, quantize_axis=1, **shared)]  # fmt: skip
        raise ArchitectureError(f"ONNX Runtime has no quantized {node.op_type}", found=name)
