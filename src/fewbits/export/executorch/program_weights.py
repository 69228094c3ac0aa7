"""The weights of a .pte file by the names that the quantized directory has for them.

A program's matrices have no names, so weights.json tells them by their order, and what isn't quantized by its SHA-256.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fewbits.checkpoint.checkpoint import Checkpoint, Floats, LazyTensor
from fewbits.checkpoint.packed import PackedTensor
from fewbits.errors import ExportError, VerificationError


@dataclass(frozen=True)
class StoredMatrix:
    """A quantized matrix of the program.

    Attributes:
        width: bits of a code.
        codes: uint8 [N, K], the signed code plus half its range.
        scale: float32 [N, G].
    """

    width: int
    codes: npt.NDArray[np.uint8]
    scale: npt.NDArray[np.float32]


@dataclass(frozen=True)
class StoredWeights:
    """All quantized matrices of a program, in the order in which it uses them.

    Attributes:
        linear: of fully connected layers that XNNPACK computes.
        embeddings: of operators that look up rows.
        floating: how many fully connected layers XNNPACK computes with weights in floating point.
        kernels: names of the operators that are called outside of delegates.
        constants: everything else that is constant, by the SHA-256 of its bytes, hexadecimal.
    """

    linear: list[StoredMatrix]
    embeddings: list[StoredMatrix]
    floating: int
    kernels: list[str]
    constants: dict[str, bytes]


class ProgramTensor(LazyTensor):
    """A quantized matrix as a program holds it."""

    dtype = "F32"

    def __init__(self, name: str, matrix: StoredMatrix) -> None:
        self.name, self.held, self.shape = name, matrix, matrix.codes.shape

    def rows(self, start: int, stop: int) -> Floats:
        """Rows start … stop as XNNPACK computes them, float32 [stop - start, K]."""
        scale = self.held.scale[start:stop]
        value = self.held.codes[start:stop].astype(np.float32) - np.float32(1 << (self.held.width - 1))
        grouped = value.reshape(stop - start, scale.shape[1], -1) * scale[:, :, None]
        return grouped.reshape(stop - start, self.shape[1])

    def equals(self, other: ProgramTensor) -> bool:
        """Whether codes and scales are the same."""
        same = np.array_equal(self.held.codes, other.held.codes)
        return same and np.array_equal(self.held.scale, other.held.scale)


class PlainTensor(LazyTensor):
    """A tensor that a program holds in floating point."""

    dtype = "F32"

    def __init__(self, name: str, shape: tuple[int, ...], data: bytes) -> None:
        self.name, self.shape, self.data = name, shape, data

    def rows(self, start: int, stop: int) -> Floats:
        """Rows start … stop as float32 [stop - start, K]."""
        return np.frombuffer(self.data, "<f4").reshape(self.matrix)[start:stop].copy()


def weight_names(quantized: Checkpoint, modules: Mapping[str, str], order: Sequence[str]) -> dict[str, Any]:
    """What weights.json says.

    Args:
        quantized: the directory.
        modules: name of each quantized module of the decoder -> name of its weight.
        order: names of the weights that are multiplied with, in order; a tied head's is the embedding's.

    Raises:
        ExportError: a quantized weight has no place in the program.
    """
    packed = [name for name, tensor in quantized.tensors.items() if isinstance(tensor, PackedTensor)]
    if missing := sorted(set(packed) - set(modules.values())):
        raise ExportError("weights have no place in the program", found=", ".join(missing[:5]))
    multiplied = Counter(order)
    embedding = [name for name, count in Counter(modules.values()).items() if count > multiplied[name]]
    plain = {
        name: {"shape": tensor.shape, "sha256": hashlib.sha256(tensor.read().tobytes()).hexdigest()}
        for name, tensor in quantized.tensors.items()
        if name not in packed
    }
    return {"linear": list(order), "embedding": embedding, "plain": plain}


def program_weights(names: Mapping[str, Any], stored: StoredWeights) -> dict[str, LazyTensor]:
    """All quantized weights of a program, and of the others those that it holds as they were.

    Raises:
        VerificationError: another number of matrices than was written, or a tied head that differs.
    """
    expected = [*names["embedding"], *names["linear"]]
    matrices = [*stored.embeddings, *stored.linear]
    if len(matrices) != len(expected):
        raise VerificationError(
            "the program has another number of quantized matrices than was written",
            found=len(matrices), allowed=len(expected),
        )  # fmt: skip
    quantized: dict[str, ProgramTensor] = {}
    for name, matrix in zip(expected, matrices, strict=True):
        tensor = ProgramTensor(name, matrix)
        if name in quantized and not tensor.equals(quantized[name]):
            raise VerificationError(f"the program has two versions of {name}")
        quantized[name] = tensor
    plain = {
        name: PlainTensor(name, tuple(described["shape"]), stored.constants[described["sha256"]])
        for name, described in names["plain"].items()
        if described["sha256"] in stored.constants
    }
    return {**quantized, **plain}
