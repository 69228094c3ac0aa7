"""An importance matrix in place of calibration: which tensors of a container it weights, and with what.

Its entries have the container's tensor names, so that neither the model nor PyTorch is needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fewbits.calibration.imatrix import ImportanceMatrix, read_imatrix
from fewbits.errors import CalibrationError, PlanError
from fewbits.export.exporter import OutputTensor
from fewbits.planning.plan import DEFAULT_ALGORITHM, TensorChoice

Floats: TypeAlias = npt.NDArray[np.float32]

# Columns that the matrix has never seen active still hold weights: this share of the mean is what they count.
_LEAST = 1e-6
_NAMED = 3


@dataclass(frozen=True)
class Importance:
    """What an importance matrix says of a container's tensors.

    Attributes:
        matrix: the entries, by container tensor name.
        name: of the file, and of the texts it was made from.
        sha256: of the file, in hexadecimal.
        covered: the quantizable tensors that it has an entry for.
    """

    matrix: ImportanceMatrix
    name: str
    sha256: str
    covered: frozenset[str]

    def of(self, tensor: OutputTensor) -> Callable[[int, int], Floats]:
        """A function from rows start … stop of a covered tensor [(E,) N, K] to their weights, float32 [n, K].

        In a stack of experts every row has its expert's weights; without one all rows have the same.
        """
        found = np.atleast_2d(self.matrix.importance(tensor.name))
        found = np.maximum(found, _LEAST * found.mean(axis=1, keepdims=True))
        # An entry of zeros says that nothing was seen: all columns alike, then.
        found[~found.any(axis=1)] = 1
        rows = tensor.source.matrix[0] // len(found)
        return lambda start, stop: found[np.arange(start, stop) // rows]

    def warnings(self, choices: Mapping[str, TensorChoice]) -> tuple[str, ...]:
        """Says which tensors are rounded without weights."""
        plain = [name for name, choice in choices.items() if choice.algorithm == DEFAULT_ALGORITHM]
        if not plain:
            return ()
        names = ", ".join(plain[:_NAMED]) + (", …" if len(plain) > _NAMED else "")
        count = "1 tensor" if len(plain) == 1 else f"{len(plain)} tensors"
        return (f"the importance matrix has nothing for {count}, rounded without it: {names}",)


def read_importance(
    path: str | Path | None, tensors: Sequence[OutputTensor], expected: str | None
) -> Importance:
    """The importance matrix of a file, checked against a container's tensors.

    Args:
        path: the file; None where there is none.
        tensors: what the container holds.
        expected: sha256 of the matrix that the artifact to be made again was made with, "" if without one;
            None where any will do.

    Raises:
        CheckpointError, CalibrationError: the file can't be read, or belongs to another model.
        PlanError: it isn't the one expected.
    """
    if path is None:
        raise PlanError(
            "the artifact was made with an importance matrix",
            found="none",
            allowed=f"the one with sha256 {expected}",
            action="Pass it with --imatrix",
        )
    matrix = read_imatrix(path)
    with Path(path).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if expected not in (None, sha256):
        raise PlanError(
            "the artifact was made with another importance matrix" if expected else
            "the artifact was made without an importance matrix",
            found=f"sha256 {sha256}", allowed=f"sha256 {expected}" if expected else None,
            action="Pass that one with --imatrix" if expected else "Leave out --imatrix",
        )  # fmt: skip
    covered = frozenset(t.name for t in tensors if t.quantizable and _covers(matrix, t, path))
    if not covered:
        raise CalibrationError(
            f"the importance matrix {path} has nothing for this model in this container",
            found=f"entries such as {', '.join(sorted(matrix.entries)[:_NAMED])}",
            allowed=f"names such as {', '.join([t.name for t in tensors if t.quantizable][:_NAMED])}",
        )
    texts = ", ".join(matrix.datasets)
    return Importance(matrix, Path(path).name + (f" ({texts})" if texts else ""), sha256, covered)


def _covers(matrix: ImportanceMatrix, tensor: OutputTensor, path: str | Path) -> bool:
    if tensor.name not in matrix.entries:
        return False
    shape = np.atleast_2d(matrix.entries[tensor.name][0]).shape
    wanted = (tensor.shape[0] if len(tensor.shape) > 2 else 1, tensor.shape[-1])
    if shape != wanted:
        raise CalibrationError(
            f"the importance matrix {path} belongs to another model",
            found=f"{shape[1]} columns of {shape[0]} experts for {tensor.name}",
            allowed=f"{wanted[1]} columns of {wanted[0]}",
        )
    return True
