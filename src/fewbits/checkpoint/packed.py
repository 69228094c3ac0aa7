"""Reading weights that a container of safetensors files packs: a module's arrays as one tensor in one of our formats.

    X.qweight, X.qzeros, X.scales, X.g_idx   →   X.weight in, say, GPTQ4_G128

One `PackedReader` per container says what its arrays are called and which format they are. Files whose description,
dtypes or names aren't exactly those of a format are left alone.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Mapping
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from fewbits.checkpoint.checkpoint import Floats, LazyTensor, SizedTensor, StoredTensor
from fewbits.checkpoint.dtypes import STORAGE
from fewbits.checkpoint.recently import Recently
from fewbits.errors import CheckpointError
from fewbits.formats import get_format
from fewbits.formats.format import PartLayout, QTensor

WEIGHT = "weight"
_BIAS = "bias"
# Transposed arrays are read whole; those of the last few tensors are kept for the next rows.
_transposed: Recently[Mapping[str, npt.NDArray[Any]]] = Recently(2)


class PackedTensor(SizedTensor):
    """A weight in one of our formats, whose arrays are tensors of a file.

    Attributes:
        name: of the weight, as the unquantized model calls it.
        shape: of the weight.
        dtype: the format's name.
        parts: the arrays by the format's names for them.
        nbytes: of all its arrays.
        inputs: what the file says of the map's inputs, by the container's names: a number each.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: str,
        parts: Mapping[str, StoredTensor],
        inputs: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self.name, self.shape, self.dtype, self.parts, self.inputs = name, shape, dtype, parts, inputs
        self.nbytes = sum(part.nbytes for part in parts.values())

    def quantized(self, start: int, stop: int) -> QTensor:
        """Rows start … stop as they are stored; `start` a multiple of the format's `rows_together`, stop > start."""
        fmt = get_format(self.dtype)
        layouts = fmt.parts(self.shape)
        transposed = {name for name, layout in layouts.items() if layout.axis}
        whole = _transposed.get(self, lambda: self._read_whole(transposed)) if transposed else {}
        arrays = {}
        for name, layout in layouts.items():
            first, last = layout.range(start, stop)
            if name in whole:
                arrays[name] = whole[name][:, first:last]
            else:
                arrays[name] = _read(self.parts[name], layout, first, last)
        shape = (stop - start, self.shape[-1])
        return QTensor(fmt, shape, *fmt.unpack(arrays, shape))

    def rows(self, start: int, stop: int) -> Floats:
        """Rows start … stop as the runtime computes them, float32 [stop - start, K]."""
        if start >= stop:
            return np.empty((0, self.shape[-1]), np.float32)
        first = start - start % get_format(self.dtype).rows_together
        return self.quantized(first, stop).dequantize()[start - first :]

    def _read_whole(self, names: Collection[str]) -> dict[str, npt.NDArray[Any]]:
        parts = {name: self.parts[name] for name in names}
        return {n: p.raw(0, p.matrix[0]).view(STORAGE[p.dtype]).reshape(p.shape) for n, p in parts.items()}


def _read(part: StoredTensor, layout: PartLayout, start: int, stop: int) -> npt.NDArray[Any]:
    """Rows start … stop of an array's first axis, in its own NumPy type."""
    if part.dtype != layout.dtype:
        return part.read()[start:stop] if len(part.shape) < 2 else part.rows(start, stop)
    if len(layout.shape) < 2:  # a vector is one row
        whole = part.raw(0, 1).view(STORAGE[part.dtype]).reshape(layout.shape)
        return whole if layout.rows is None else whole[start:stop]
    return part.raw(start, stop).view(STORAGE[part.dtype]).reshape(stop - start, *layout.shape[1:])


def _holds_exactly(layout: PartLayout, part: StoredTensor) -> bool:
    """Whether the format's array holds what is stored: some write scales narrower than fewbits does."""
    narrow = layout.dtype == "F32" and part.dtype in ("BF16", "F16") and layout.axis == 0
    return part.dtype == layout.dtype or narrow


class PackedReader(ABC):
    """What a container's quantized modules look like.

    Attributes:
        markers: parts that only quantized modules have.
        parts: all of their parts but the bias. Longer names that end alike come first.
        ignored: names of arrays of activations and the key-value cache, of no use for the weights.
        input_parts: those of them that hold one number for a map's inputs.
    """

    markers: tuple[str, ...]
    parts: tuple[str, ...]
    ignored: re.Pattern[str] = re.compile(r"(?!)")
    input_parts: tuple[str, ...] = ()

    def arrays(self, tensors: Mapping[str, LazyTensor]) -> Mapping[str, LazyTensor]:
        """The files' tensors by the names of the modules that they belong to in the unquantized model."""
        return tensors

    @abstractmethod
    def format_of(self, module: str, parts: Mapping[str, StoredTensor]) -> tuple[str, tuple[int, int]] | None:
        """The format of a module's weight and the weight's shape; None if it is none of ours.

        Raises:
            CheckpointError: what the arrays say of the shape is impossible.
        """


def quantized_modules(names: Collection[str], markers: Collection[str]) -> list[str]:
    """The modules among these names of arrays that have one of the markers."""
    found = (n.removesuffix(f".{m}") for n in names for m in markers if n.endswith(f".{m}"))
    return list(dict.fromkeys(found))


def owner_of(name: str, modules: Collection[str], parts: Collection[str]) -> tuple[str, str] | None:
    """The quantized module that an array belongs to, and which part of it it is; None if to none."""
    for part in parts:
        if name.endswith(f".{part}") and (module := name.removesuffix(f".{part}")) in modules:
            return module, part
    return None


def unpack_modules(tensors: Mapping[str, LazyTensor], reader: PackedReader) -> dict[str, LazyTensor] | None:
    """The model's weights under their own names, or None if not all of them are in formats that we know.

    Args:
        tensors: as they lie in the files.
        reader: of their container.

    Raises:
        CheckpointError: arrays of a weight are missing, or of another shape than its format says.
    """
    tensors = reader.arrays(tensors)
    result: dict[str, LazyTensor] = {}
    modules: dict[str, dict[str, StoredTensor]] = {
        module: {} for module in quantized_modules(tensors, reader.markers)
    }
    inputs: dict[str, dict[str, float]] = {}
    for name, tensor in tensors.items():
        if owner := owner_of(name, modules, reader.parts):
            module, part = owner
            if not isinstance(tensor, StoredTensor):
                return None
            result.setdefault(f"{module}.{WEIGHT}", tensor)  # keeps its place; replaced below
            modules[module][part] = tensor
        elif (owner := owner_of(name, modules, reader.input_parts)) and prod(tensor.shape) == 1:
            inputs.setdefault(owner[0], {})[owner[1]] = float(tensor.read().reshape(()))
        elif not reader.ignored.fullmatch(name):
            if _is_foreign(name, modules):
                return None
            result[name] = tensor
    for module, parts in modules.items():
        described = reader.format_of(module, parts)
        packed = None if described is None else _packed_tensor(f"{module}.{WEIGHT}", *described, parts)
        if packed is None:
            return None
        packed.inputs = inputs.get(module, {})
        result[packed.name] = packed
    return result


def _is_foreign(name: str, modules: Collection[str]) -> bool:
    """Whether a quantized module has an array that none of our formats has."""
    module, _, part = name.rpartition(".")
    return part != _BIAS and (module in modules or module.removesuffix(f".{WEIGHT}") in modules)


def warning_of(tensors: Mapping[str, LazyTensor]) -> str:
    """What to tell someone who quantizes these weights again."""
    kinds = Counter(t.dtype for t in tensors.values() if isinstance(t, PackedTensor))
    shown = ", ".join(f"{name} x{count}" for name, count in kinds.most_common())
    return (
        f"{sum(kinds.values())} weights are already quantized ({shown}): what that lost stays lost, and quantizing "
        "again adds to it. Start from the original model if you can."
    )


def _packed_tensor(
    name: str, format_name: str, shape: tuple[int, int], parts: Mapping[str, StoredTensor]
) -> PackedTensor | None:
    """The weight; None if its arrays have other dtypes than the format's.

    Raises:
        CheckpointError: arrays are missing, or of another shape.
    """
    expected = get_format(format_name).parts(shape)
    missing = [part for part in expected if part not in parts]
    if missing:
        raise CheckpointError(
            f"{name} is {format_name} by its config and lacks arrays", found=", ".join(parts),
            allowed=", ".join(expected), action="Download the model again",
        )  # fmt: skip
    for part, layout in expected.items():
        if not _holds_exactly(layout, parts[part]):
            return None
        if parts[part].shape != layout.shape:
            raise CheckpointError(
                f"{name} is {format_name} by its config, and its {part} has another shape",
                found=list(parts[part].shape), allowed=list(layout.shape), action="Download the model again",
            )  # fmt: skip
    return PackedTensor(name, shape, format_name, {part: parts[part] for part in expected})
