"""Converting a program to a Core ML package, and reading one back; all by coremltools."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import torch
from coremltools.converters.mil.frontend.milproto.load import load
from coremltools.models.utils import load_spec

from fewbits.checkpoint.checkpoint import Floats, LazyTensor
from fewbits.checkpoint.packed import PackedTensor
from fewbits.checkpoint.recently import Recently
from fewbits.errors import ExportError, VerificationError
from fewbits.export.coreml.compressed_weights import PASS
from fewbits.export.coreml.program import STATES, StatefulProgram, mask_of
from fewbits.version import __version__

PACKAGE = "model.mlpackage"
_WEIGHTS = "fewbits.weights"
# The squares of a norm's input go beyond float16 in models with massive activations.
_IN_FLOAT32 = ("pow", "square", "reduce_mean", "rsqrt")
_TRACED = 3
_unpacked: Recently[Floats] = Recently(2)


def trace(program: StatefulProgram) -> Any:
    """The program as TorchScript; lengths stay open."""
    tokens = torch.zeros(1, _TRACED, dtype=torch.int32)
    program.reset()
    with torch.no_grad():
        traced = torch.jit.trace(program, (tokens, mask_of(0, _TRACED)), check_trace=False)  # type: ignore[no-untyped-call]
    program.reset()
    return traced


def convert(traced: Any, program: StatefulProgram, weights: Mapping[str, PackedTensor]) -> Any:
    """A `coremltools.models.MLModel` of a traced program, with the weights compressed as they are.

    Raises:
        ExportError: coremltools can't, or a weight isn't to be found among the program's constants.
    """
    placed: dict[str, str] = {}
    pipeline = ct.PassPipeline.DEFAULT
    pipeline.append_pass(PASS)
    pipeline.set_options(PASS, {"weights": weights, "placed": placed})
    length = ct.RangeDim(lower_bound=1, upper_bound=program.context, default=1)
    filled = ct.RangeDim(lower_bound=1, upper_bound=program.context, default=1)
    try:
        package = ct.convert(
            traced,
            inputs=[
                ct.TensorType(shape=(1, length), dtype=np.int32, name="inputIds"),
                ct.TensorType(shape=(1, 1, length, filled), dtype=np.float16, name="causalMask"),
            ],
            outputs=[ct.TensorType(dtype=np.float16, name="logits")],
            states=[
                ct.StateType(wrapped_type=ct.TensorType(shape=program.shape, dtype=np.float16), name=name)
                for name in STATES
            ],
            minimum_deployment_target=ct.target.iOS18,
            compute_precision=ct.transform.FP16ComputePrecision(op_selector=_fits_float16),
            pass_pipeline=pipeline,
            skip_model_load=True,
        )
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(
            "coremltools can't convert the model",
            found=lines[-1],
            action="Choose another container, such as gguf",
        ) from error
    if missing := sorted(set(weights) - set(placed)):
        raise ExportError(
            "weights aren't among the constants of coremltools' program", found=", ".join(missing[:3]),
            action="coremltools 9.0 is known to work; compare your version",
        )  # fmt: skip
    package.user_defined_metadata[_WEIGHTS] = json.dumps(placed)
    package.user_defined_metadata["fewbits.version"] = __version__
    return package


def _fits_float16(operation: Any) -> bool:
    if operation.op_type in _IN_FLOAT32:
        return False
    inputs = [v.op for v in operation.inputs.values() if getattr(v, "op", None) is not None]
    return not (operation.op_type == "add" and any(op.op_type in _IN_FLOAT32 for op in inputs))


class CompressedTensor(LazyTensor):
    """A weight as coremltools decompresses it."""

    def __init__(self, name: str, operation: Any) -> None:
        self.name, self.dtype = name, "F16"
        self.shape = tuple(int(n) for n in operation.outputs[0].shape)
        self._operation = operation

    def rows(self, start: int, stop: int) -> Floats:
        """Rows start … stop, float32 [stop - start, K]."""
        whole = _unpacked.get(self, lambda: np.asarray(self._operation.materialized_val_inference()))
        return whole[start:stop].astype(np.float32)


def read_weights(folder: Path) -> dict[str, LazyTensor]:
    """The compressed weights of a package, by the model's names.

    Raises:
        VerificationError: the specification or the program doesn't read back, or lacks a weight.
    """
    package = folder / PACKAGE
    try:
        spec = load_spec(str(package))
        names = json.loads(spec.description.metadata.userDefined[_WEIGHTS])
        # Types of all operations are inferred again while it loads.
        program = load(
            spec, spec.specificationVersion, str(package / "Data" / "com.apple.CoreML" / "weights")
        )
    except Exception as error:
        raise VerificationError(f"{package} doesn't read back", found=str(error)) from error
    operations = {op.name: op for f in program.functions.values() for op in f.operations}
    if missing := [name for name, op in names.items() if op not in operations]:
        raise VerificationError(f"{package} lacks weights", found=", ".join(missing[:3]))
    return {name: CompressedTensor(name, operations[op]) for name, op in names.items()}
