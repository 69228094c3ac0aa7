"""Reading weights that compressed-tensors has packed: a module's arrays as one tensor in one of our formats.

    X.weight_packed, X.weight_scale, X.weight_zero_point, X.weight_shape   →   X.weight in, say, INT4_G64

Files whose description or dtypes aren't exactly those of a format are left alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fewbits.checkpoint.checkpoint import Floats, LazyTensor, SizedTensor, StoredTensor
from fewbits.checkpoint.dtypes import STORAGE
from fewbits.errors import CheckpointError
from fewbits.formats import get_format
from fewbits.formats.compressed_tensors import SHAPE_PART, Scheme, scheme_described_by

_WEIGHT = "weight"
# Names that begin an array of a quantized weight; the longest first.
_PARTS = ("weight_packed", "weight_scale", "weight_zero_point", "weight_global_scale", SHAPE_PART, _WEIGHT)
# Of activations and of the key-value cache: of no use for the weights.
_ACTIVATIONS = re.compile(
    r".*\.((input|output)_(scale|zero_point|global_scale)|[kqv]_scale|[kqv]_zero_point)"
)


class PackedTensor(SizedTensor):
    """A weight in one of our formats, whose arrays are tensors of a file.

    Attributes:
        name: of the weight, as the unquantized model calls it.
        shape: of the weight.
        dtype: the format's name.
        parts: the arrays by the format's names for them.
        nbytes: of all its arrays.
    """

    def __init__(
        self, name: str, shape: tuple[int, ...], dtype: str, parts: Mapping[str, StoredTensor]
    ) -> None:
        self.name, self.shape, self.dtype, self.parts = name, shape, dtype, parts
        self.nbytes = sum(part.nbytes for part in parts.values())

    def rows(self, start: int, stop: int) -> Floats:
        """Rows start … stop as the runtime computes them, float32 [stop - start, K]."""
        fmt, columns = get_format(self.dtype), self.shape[-1]
        if start >= stop:
            return np.empty((0, columns), np.float32)
        first = start - start % fmt.rows_together
        arrays = {
            name: _read(self.parts[name], *layout.range(first, stop), layout.shape)
            for name, layout in fmt.parts(self.shape).items()
        }
        codes, params = fmt.unpack(arrays, (stop - first, columns))
        values = fmt.decode(codes.reshape(-1, fmt.block_of(columns)), params)
        return values.reshape(stop - first, columns)[start - first :]


def _read(part: StoredTensor, start: int, stop: int, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Rows start … stop of an array's first axis, in its own NumPy type."""
    if len(shape) < 2:
        start, stop = 0, 1  # a vector is one row
        return part.raw(start, stop).view(STORAGE[part.dtype]).reshape(shape)
    return part.raw(start, stop).view(STORAGE[part.dtype]).reshape(stop - start, *shape[1:])


def unpack_modules(
    tensors: Mapping[str, LazyTensor], quantization: Mapping[str, Any]
) -> dict[str, LazyTensor] | None:
    """The model's weights under their own names, or None if not all of them are in formats that we know.

    Args:
        tensors: as they lie in the files.
        quantization: config.json's ``quantization_config``.

    Raises:
        CheckpointError: arrays of a weight are missing, or of another shape than its format says.
    """
    groups = _groups(quantization)
    if groups is None:
        return None
    result: dict[str, LazyTensor] = {}
    modules: dict[str, dict[str, StoredTensor]] = {}
    for name in _quantized_modules(tensors):
        modules[name] = {}
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        if module in modules and part in _PARTS and isinstance(tensor, StoredTensor):
            if not modules[module]:
                result[f"{module}.{_WEIGHT}"] = tensor  # keeps its place; replaced below
            modules[module][part] = tensor
        elif module in modules and part.startswith(_WEIGHT):
            return None  # an array that none of our formats has, such as GPTQ's order of columns
        elif not _ACTIVATIONS.fullmatch(name):
            result[name] = tensor
    for module, parts in modules.items():
        scheme = _scheme_for(module, groups)
        packed = None if scheme is None else _packed_tensor(f"{module}.{_WEIGHT}", scheme, parts)
        if packed is None:
            return None
        result[packed.name] = packed
    return result


def warning_of(tensors: Mapping[str, LazyTensor]) -> str:
    """What to tell someone who quantizes these weights again."""
    kinds = Counter(t.dtype for t in tensors.values() if isinstance(t, PackedTensor))
    shown = ", ".join(f"{name} x{count}" for name, count in kinds.most_common())
    return (
        f"{sum(kinds.values())} weights are already quantized ({shown}): what that lost stays lost, and quantizing "
        "again adds to it. Start from the original model if you can."
    )


def _quantized_modules(tensors: Mapping[str, LazyTensor]) -> list[str]:
    """Modules with a scale of their weight."""
    return [name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")]


def _groups(quantization: Mapping[str, Any]) -> list[tuple[list[str], Scheme]] | None:
    """(targets, scheme) of every group; None if one isn't known."""
    groups = quantization.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        return None
    found = []
    for group in groups.values():
        if not isinstance(group, Mapping) or not isinstance(group.get("targets"), list):
            return None
        layout = group.get("format") or quantization.get("format")
        scheme = scheme_described_by(group.get("weights"), layout)
        if scheme is None:
            return None
        found.append(([str(target) for target in group["targets"]], scheme))
    return found


def _scheme_for(module: str, groups: list[tuple[list[str], Scheme]]) -> Scheme | None:
    """That of the group with the module's name, else with a pattern that matches it, else with its class."""
    for matches in (_is_name, _is_pattern, _is_class):
        for targets, scheme in groups:
            if any(matches(target, module) for target in targets):
                return scheme
    return None


def _is_name(target: str, module: str) -> bool:
    return target == module


def _is_pattern(target: str, module: str) -> bool:
    try:
        return target.startswith("re:") and re.match(target.removeprefix("re:"), module) is not None
    except re.error:
        return False


def _is_class(target: str, module: str) -> bool:
    del module
    return target == "Linear"


def _packed_tensor(name: str, scheme: Scheme, parts: Mapping[str, StoredTensor]) -> PackedTensor | None:
    """The weight; None if its arrays have other dtypes than the format's.

    Raises:
        CheckpointError: arrays are missing, or of another shape.
    """
    shape = _shape_of(name, scheme, parts)
    expected = get_format(scheme.format).parts(shape)
    missing = [part for part in expected if part not in parts]
    if missing:
        raise CheckpointError(
            f"{name} is {scheme.format} by its config and lacks arrays", found=", ".join(parts),
            allowed=", ".join(expected), action="Download the model again",
        )  # fmt: skip
    for part, layout in expected.items():
        if parts[part].dtype != layout.dtype:
            return None
        if parts[part].shape != layout.shape:
            raise CheckpointError(
                f"{name} is {scheme.format} by its config, and its {part} has another shape",
                found=list(parts[part].shape), allowed=list(layout.shape), action="Download the model again",
            )  # fmt: skip
    return PackedTensor(name, shape, scheme.format, {part: parts[part] for part in expected})


def _shape_of(name: str, scheme: Scheme, parts: Mapping[str, StoredTensor]) -> tuple[int, int]:
    """Rows and columns of the weight."""
    if scheme.shape_part:
        shape = parts.get(SHAPE_PART)
        if shape is None or shape.dtype != "I64" or shape.shape != (2,):
            raise CheckpointError(f"{name} has no usable {SHAPE_PART}", action="Download the model again")
        rows, columns = shape.raw(0, 1).view(np.int64).reshape(2).tolist()
        if not (0 < rows < 1 << 40 and 0 < columns < 1 << 40):
            raise CheckpointError(f"{name} has no usable {SHAPE_PART}", found=[rows, columns])
        return rows, columns
    for part, tensor in parts.items():
        if part in (_WEIGHT, "weight_packed") and len(tensor.shape) == 2:
            rows, columns = tensor.shape
            return rows, columns * (8 // scheme.weights["num_bits"])
    raise CheckpointError(f"{name} has no array of codes", found=", ".join(parts))
