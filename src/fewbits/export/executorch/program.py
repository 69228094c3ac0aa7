"""From a decoder to a .pte file, by torch.export and ExecuTorch's own lowering."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import (
    EdgeCompileConfig,
    ExecutorchBackendConfig,
    ExecutorchProgramManager,
    to_edge_transform_and_lower,
)
from executorch.exir.passes import MemoryPlanningPass
from executorch.exir.passes.sym_shape_eval_pass import ConstraintBasedSymShapeEvalPass
from torch.export import Dim, ExportedProgram, export

from fewbits.export.executorch.decoder import Decoder

_EXAMPLE = 3  # tokens; one would be taken for a constant


def export_decoder(decoder: Decoder) -> ExportedProgram:
    """The graph of a decoder whose number of tokens isn't fixed."""
    tokens = Dim("tokens", max=decoder.context - 1)
    inputs = (torch.zeros((1, _EXAMPLE), dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    with torch.no_grad():
        return export(decoder, inputs, dynamic_shapes=({1: tokens}, None), strict=False)


def linear_order(program: ExportedProgram) -> list[str]:
    """Names of the modules whose quantized weights the graph multiplies with, in the order in which it does."""
    buffers = program.graph_signature.inputs_to_buffers
    order = []
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target is torch.ops.aten.linear.default:
            source = node.args[1]
            while source.op == "call_function" and source.target is not operator.getitem:
                source = source.args[0]
            if source.name in buffers:
                order.append(buffers[source.name].removesuffix(".codes"))
    return order


def lower(program: ExportedProgram, metadata: Mapping[str, Any]) -> ExecutorchProgramManager:
    """A graph as ExecuTorch's program, with what XNNPACK takes delegated to it.

    Args:
        program: the graph.
        metadata: name of a method that runners ask for -> what it returns.
    """
    edge = to_edge_transform_and_lower(
        {"forward": program},
        partitioner=[XnnpackPartitioner()],
        compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
        constant_methods=dict(metadata),
    )
    lowered: ExecutorchProgramManager = edge.to_executorch(
        ExecutorchBackendConfig(
            extract_delegate_segments=True,
            memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False),
            sym_shape_eval_pass=ConstraintBasedSymShapeEvalPass(),
        )
    )
    return lowered
