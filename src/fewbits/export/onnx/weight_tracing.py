"""Which parameters a model builder's tensors are made of, found without any of their numbers.

    q, k, v  ──►  cat  ──►  transpose  ──►  what is stored as "qkv_proj.MatMul.weight"

Tensors are on the meta device: nothing is ever loaded or computed. Views share a parameter's storage, which tells their
rows; operations that make a new storage are followed. What can be told is rows of parameters in a row, maybe plus a
constant, maybe transposed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    _Mode = object
else:
    _Mode = TorchDispatchMode

_COPIES = {"aten::_to_copy", "aten::clone", "aten::contiguous"}
# Builders ask whether a bias is all zeros and leave it out then; without numbers the answer is no.
_COUNTED = "aten::count_nonzero"


@dataclass(frozen=True)
class Piece:
    """Rows of a parameter; its entries, where it is a vector.

    Attributes:
        parameter: its name.
        start, stop: the rows.
        constant: what is added to all of them.
    """

    parameter: str
    start: int
    stop: int
    constant: float = 0.0


@dataclass(frozen=True)
class Origin:
    """What a tensor is made of.

    Attributes:
        pieces: one after another along the first axis.
        transposed: whether the whole is transposed.
    """

    pieces: tuple[Piece, ...]
    transposed: bool = False


class WeightTracing(_Mode):
    """While active, remembers where tensors on the meta device come from."""

    def __init__(self, parameters: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        # Storage -> what lies in it, row by row, and the length of a row.
        self._stored: dict[int, tuple[tuple[Piece, ...], int]] = {}
        self._kept: list[torch.Tensor] = []  # so that no storage takes another's place
        for name, parameter in parameters.items():
            self._remember(parameter, (Piece(name, 0, parameter.shape[0]),))

    def origin(self, tensor: torch.Tensor) -> Origin | None:
        """Where a tensor comes from; None if that can't be told in these words."""
        found = self._stored.get(_storage(tensor))
        if found is None or tensor.dim() > 2:
            return None
        pieces, columns = found
        shape, stride = tuple(tensor.shape), tensor.stride()
        if tensor.dim() == 1:
            shape, stride = (*shape, 1), (*stride, 1)
        rows, transposed = shape[0], False
        if shape[1] != columns or stride != (columns, 1):
            if shape[0] != columns or stride != (1, columns):
                return None
            rows, transposed = shape[1], True
        start, rest = divmod(int(tensor.storage_offset()), columns)
        return None if rest else Origin(_rows(pieces, start, start + rows), transposed)

    def _remember(self, tensor: torch.Tensor, pieces: tuple[Piece, ...]) -> None:
        columns = tensor.shape[1] if tensor.dim() == 2 else 1
        if tensor.dim() <= 2 and tensor.is_contiguous():
            self._stored[_storage(tensor)] = (pieces, columns)
            self._kept.append(tensor)  # they hold no numbers

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and note what its result is made of."""
        del types
        name = func.name().removesuffix(".default")
        if name == _COUNTED and args[0].is_meta:
            return torch.tensor(args[0].numel())
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.is_meta and _storage(result) not in self._stored:
            pieces = self._follow(name, args)
            if pieces is not None:
                self._remember(result, pieces)
        return result

    def _follow(self, name: str, args: tuple[Any, ...]) -> tuple[Piece, ...] | None:
        if name == "aten::cat":
            return self._joined(args[0], args[1] if len(args) > 1 else 0)
        origin = self.origin(args[0]) if args and isinstance(args[0], torch.Tensor) else None
        if origin is None or origin.transposed:
            return None
        if name in _COPIES:
            return origin.pieces
        if name == "aten::add.Tensor" and isinstance(args[1], int | float):
            return tuple(replace(p, constant=p.constant + args[1]) for p in origin.pieces)
        return None

    def _joined(self, tensors: list[torch.Tensor], axis: int) -> tuple[Piece, ...] | None:
        origins = [self.origin(tensor) for tensor in tensors]
        known = [origin for origin in origins if origin is not None and not origin.transposed]
        if axis != 0 or len(known) < len(origins):
            return None
        return _merged(piece for origin in known for piece in origin.pieces)


def _storage(tensor: torch.Tensor) -> int:
    """What all views of one storage have in common, on the meta device too."""
    return int(tensor.untyped_storage()._cdata)


def _rows(pieces: Iterable[Piece], start: int, stop: int) -> tuple[Piece, ...]:
    """Those rows of pieces that lie one after another."""
    found, offset = [], 0
    for piece in pieces:
        low, high = max(start - offset, 0), min(stop - offset, piece.stop - piece.start)
        if low < high:
            found.append(replace(piece, start=piece.start + low, stop=piece.start + high))
        offset += piece.stop - piece.start
    return tuple(found)


def _merged(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    """The same rows in as few pieces as can be."""
    merged: list[Piece] = []
    for piece in pieces:
        last = merged[-1] if merged else None
        if last and last.stop == piece.start and replace(last, start=piece.start, stop=piece.stop) == piece:
            merged[-1] = replace(last, stop=piece.stop)
        else:
            merged.append(piece)
    return tuple(merged)
