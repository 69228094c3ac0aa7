"""What happens to a tensor's numbers between a Hugging Face checkpoint and GGUF, both ways. All lazy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fewbits.checkpoint.checkpoint import LazyTensor
from fewbits.checkpoint.views import Permuted, Renamed, Reshaped, RowRange, Shifted, Stacked
from fewbits.errors import ArchitectureError


class Transform:
    """The numbers as they are."""

    def to_gguf(self, tensor: LazyTensor, name: str, config: Mapping[str, Any]) -> LazyTensor:
        """A Hugging Face tensor as llama.cpp wants it, under its GGUF name."""
        del config
        return Renamed(tensor, name)

    def to_hugging_face(self, tensor: LazyTensor, name: str, config: Mapping[str, Any]) -> LazyTensor:
        """The inverse of `to_gguf`."""
        del config
        return Renamed(tensor, name)


SAME = Transform()


@dataclass(frozen=True)
class Interleave(Transform):
    """Rows of each attention head in the order in which llama.cpp rotates them.

    transformers rotates row i of a head with row i + D/2, llama.cpp row 2i with row 2i + 1:
    0 1 2 3 | 4 5 6 7 becomes 0 4 1 5 2 6 3 7.

    Attributes:
        heads: config key of the number of heads.
    """

    heads: str

    def to_gguf(self, tensor: LazyTensor, name: str, config: Mapping[str, Any]) -> LazyTensor:
        """[heads * D, K] or [heads * D]: halves to pairs."""
        return _reorder(tensor, self._order(tensor, config), name)

    def to_hugging_face(self, tensor: LazyTensor, name: str, config: Mapping[str, Any]) -> LazyTensor:
        """[heads * D, K] or [heads * D]: pairs to halves."""
        return _reorder(tensor, np.argsort(self._order(tensor, config)), name)

    def _order(self, tensor: LazyTensor, config: Mapping[str, Any]) -> npt.NDArray[np.intp]:
        rows = np.arange(tensor.shape[0])
        if len(rows) % (2 * config[self.heads]):
            raise ArchitectureError(
                f"{tensor.name} isn't made of heads with an even number of rows",
                found=f"{len(rows)} rows, {config[self.heads]} heads",
            )
        return rows.reshape(config[self.heads], 2, -1).swapaxes(1, 2).reshape(-1)


def _reorder(tensor: LazyTensor, order: npt.NDArray[np.intp], name: str) -> LazyTensor:
    if len(tensor.shape) == 2:
        return Permuted(tensor, order, name)
    if len(tensor.shape) != 1:
        raise ArchitectureError(
            f"{tensor.name} is neither a matrix nor a vector", found=f"shape {tensor.shape}"
        )
    column = Reshaped(tensor, (len(order), 1))
    return Reshaped(Permuted(column, order), tensor.shape, name)


@dataclass(frozen=True)
class Shift(Transform):
    """A constant more in GGUF than in the checkpoint."""

    constant: float

    def to_gguf(self, tensor: LazyTensor, name: str, config: Mapping[str, Any]) -> LazyTensor:
        """Plus the constant."""
        del config
        return Shifted(tensor, self.constant, name)

    def to_hugging_face(self, tensor: LazyTensor, name: str, config: Mapping[str, Any]) -> LazyTensor:
        """Minus the constant."""
        del config
        return Shifted(tensor, -self.constant, name)


class RowAsVector(Transform):
    """A matrix of one row [1, K], which GGUF holds as a vector [K]."""

    def to_gguf(self, tensor: LazyTensor, name: str, config: Mapping[str, Any]) -> LazyTensor:
        """[1, K] -> [K]."""
        del config
        return Reshaped(tensor, tensor.shape[-1:], name)

    def to_hugging_face(self, tensor: LazyTensor, name: str, config: Mapping[str, Any]) -> LazyTensor:
        """[K] -> [1, K]."""
        del config
        return Reshaped(tensor, (1, *tensor.shape), name)


def split_rows(fused: LazyTensor, names: Sequence[str]) -> list[LazyTensor]:
    """Equal shares of each expert's rows: [E, p * I, K] -> p tensors [E, I, K]."""
    if len(fused.shape) != 3 or fused.shape[1] % len(names):
        raise ArchitectureError(
            f"{fused.name} isn't {len(names)} stacks of expert matrices in one", found=f"shape {fused.shape}"
        )
    experts, rows, columns = fused.shape
    share = rows // len(names)
    result: list[LazyTensor] = []
    for i, name in enumerate(names):
        starts = [e * rows + i * share for e in range(experts)]
        parts = [RowRange(fused, start, start + share) for start in starts]
        result.append(Stacked(parts, name, (experts, share, columns)))
    return result


def join_rows(tensors: Sequence[LazyTensor], name: str) -> LazyTensor:
    """The inverse of `split_rows`: p tensors [E, I, K] -> [E, p * I, K], expert by expert."""
    shapes = {tensor.shape for tensor in tensors}
    if len(shapes) > 1 or len(tensors[0].shape) != 3:
        raise ArchitectureError(
            " and ".join(tensor.name for tensor in tensors) + " aren't equal stacks of expert matrices",
            found=f"shapes {', '.join(str(tensor.shape) for tensor in tensors)}",
        )
    experts, rows, columns = tensors[0].shape
    parts = [RowRange(t, e * rows, (e + 1) * rows) for e in range(experts) for t in tensors]
    return Stacked(parts, name, (experts, rows * len(tensors), columns))


def stack(matrices: Sequence[LazyTensor], name: str) -> LazyTensor:
    """E matrices [N, K] -> [E, N, K]."""
    return Stacked(matrices, name)
