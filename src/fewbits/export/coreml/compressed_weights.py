"""Our codes and scales in Core ML's operations for compressed weights, and back.

    4 and 8 bits     constexpr_blockwise_shift_scale(data int4 | uint4 | int8 | uint8 [N, K],
                         scale float16 [N, G], offset as data [N, G] unless symmetric)
    2, 3 and 6 bits  constexpr_lut_to_dense(indices uint2 | uint3 | uint6 [N, K], lut float16 [1, 1, 2**b, 1])
                         as the data of constexpr_blockwise_shift_scale(scale float16 [N, 1]): a palette with a scale
                         per channel

Source: coremltools' definitions of these operations (converters/mil/mil/ops/defs/iOS18/compression.py).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813  coremltools' own name for it
from coremltools.converters.mil.mil import types
from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
from coremltools.converters.mil.mil.passes.helper import block_context_manager
from coremltools.converters.mil.mil.passes.pass_registry import register_pass

from fewbits.checkpoint.checkpoint import LazyTensor
from fewbits.checkpoint.packed import PackedTensor
from fewbits.formats.format import QTensor

PASS = "fewbits::put_codes"  # noqa: S105
_SUFFIX = "_fewbits"
# Numbers of a matrix looked at once.
_ELEMENTS = 1 << 22


@register_pass(namespace="fewbits")
class put_codes(AbstractGraphPass):  # type: ignore[misc]  # noqa: N801  passes are named like functions
    """Replaces constants by the compressed weights that have the same values.

    Options:
        weights: quantized tensors by the model's names.
        placed: filled with each one's name -> name of its operation in the program.
    """

    weights: Mapping[str, PackedTensor] = {}
    placed: dict[str, str] = {}  # noqa: RUF012  set for each run by the pipeline

    def apply(self, program: Any) -> None:
        """Change a program of coremltools in place."""
        owners: dict[tuple[Any, ...], list[str]] = {}
        for name, tensor in self.weights.items():
            owners.setdefault(_content(tensor), []).append(name)
        shapes = {shape for shape, _ in owners}
        for function in program.functions.values():
            self._replace_in(function, owners, shapes)

    @block_context_manager  # type: ignore[untyped-decorator]
    def _replace_in(
        self, block: Any, owners: Mapping[tuple[Any, ...], list[str]], shapes: set[tuple[int, ...]]
    ) -> None:
        for operation in list(block.operations):
            value = operation.outputs[0].val if operation.op_type == "const" else None
            if not isinstance(value, np.ndarray) or value.shape not in shapes or value.dtype.kind != "f":
                continue
            names = owners.get((value.shape, _digest([value])), [])
            if not names:
                continue
            variable = build(self.weights[names[0]], operation)
            operation.enclosing_block.replace_uses_of_var_after_op(
                anchor_op=operation,
                old_var=operation.outputs[0],
                new_var=variable,
                no_check_var_types=True,
            )
            operation.enclosing_block.remove_ops([operation])
            self.placed |= dict.fromkeys(names, variable.op.name)


def build(tensor: PackedTensor, before: Any) -> Any:
    """The operations that hold a weight's codes and scales, before an operation; their result."""
    whole = tensor.quantized(0, tensor.shape[0])
    fmt: Any = whole.format
    params: Any = whole.params
    scale = params.scale.astype(np.float16).reshape(tensor.shape[0], -1)
    name = re.sub(r"\W", "_", before.name) + _SUFFIX  # as coremltools writes it
    if fmt.width not in (4, 8):
        return mb.constexpr_blockwise_shift_scale(
            data=_palette(whole, before, name), scale=scale, before_op=before, name=name
        )
    if fmt.symmetric:
        data = (whole.codes - np.uint8(1 << (fmt.width - 1))).view(np.int8)
        return mb.constexpr_blockwise_shift_scale(
            data=_typed(data, f"int{fmt.width}"), scale=scale, before_op=before, name=name
        )
    kind = f"uint{fmt.width}"
    return mb.constexpr_blockwise_shift_scale(
        data=_typed(whole.codes, kind), scale=scale, offset=_typed(params.zero.reshape(scale.shape), kind),
        before_op=before, name=name,
    )  # fmt: skip


def _palette(whole: QTensor, before: Any, name: str) -> Any:
    fmt: Any = whole.format
    levels = np.arange(1 << fmt.width, dtype=np.float16) - np.float16(1 << (fmt.width - 1))
    return mb.constexpr_lut_to_dense(
        indices=_typed(whole.codes, f"uint{fmt.width}"), lut=levels.reshape(1, 1, -1, 1), before_op=before,
        name=f"{name}_levels",
    )  # fmt: skip


def _typed(numbers: Any, kind: str) -> Any:
    """The numbers in coremltools' NumPy type for a MIL type of few bits."""
    return numbers.astype(types.nptype_from_builtin(types.string_to_builtin(kind)))


def _content(tensor: LazyTensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), _digest(tensor.chunks(_ELEMENTS))


def _digest(pieces: Any) -> str:
    """Of numbers as float32, which is exact for those of a float16 program."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(np.ascontiguousarray(piece, np.float32).data)
    return digest.hexdigest()
