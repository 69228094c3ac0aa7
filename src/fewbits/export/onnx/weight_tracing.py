"""Which weights a graph's builder puts where, found by letting it work on weights that have no numbers.

Parameters lie on PyTorch's meta device. Every operation on them is written down, so that what the builder stores can be
told as parameters in a row, each maybe plus a constant, maybe transposed.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_SAME = {"aten::detach", "aten::alias", "aten::_to_copy", "aten::clone", "aten::contiguous"}
_TRANSPOSED = {"aten::t", "aten::transpose.int", "aten::permute", "aten::numpy_T"}
_RESHAPED = {"aten::view", "aten::_unsafe_view", "aten::reshape", "aten::flatten.using_ints"}


@dataclass(frozen=True)
class Origin:
    """What a tensor is made of.

    Attributes:
        pieces: (parameter, constant added to it), one after another along the first axis.
        transposed: whether the whole is transposed.
    """

    pieces: tuple[tuple[str, float], ...]
    transposed: bool = False


class WeightTracing(TorchDispatchMode):
    """While active, remembers where tensors on the meta device come from."""

    def __init__(self, parameters: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self._origins: dict[int, tuple[weakref.ref[torch.Tensor], Origin]] = {}
        self._kept: list[torch.Tensor] = []
        for name, parameter in parameters.items():
            self._remember(parameter, Origin(((name, 0.0),)))

    def origin(self, tensor: torch.Tensor) -> Origin | None:
        """Where a tensor comes from; None if that can't be told in these words."""
        found = self._origins.get(id(tensor))
        return found[1] if found is not None and found[0]() is tensor else None

    def _remember(self, tensor: torch.Tensor, origin: Origin | None) -> None:
        if origin is not None:
            self._origins[id(tensor)] = (weakref.ref(tensor), origin)
            self._kept.append(tensor)  # they hold no numbers

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and note what its result is made of."""
        del types
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.is_meta:
            self._remember(result, self._follow(func, args, result))
        return result

    def _follow(self, func: Any, args: tuple[Any, ...], result: torch.Tensor) -> Origin | None:
        name = func.name().removesuffix(".default")
        if name == "aten::cat":
            return self._joined(args[0], args[1] if len(args) > 1 else 0)
        origin = self.origin(args[0]) if args and isinstance(args[0], torch.Tensor) else None
        if origin is None:
            return None
        if name in _SAME:
            return origin
        if name in _RESHAPED:
            return origin if result.shape == args[0].shape else None
        if name in _TRANSPOSED and result.dim() == 2 and result.shape == args[0].shape[::-1]:
            return replace(origin, transposed=not origin.transposed)
        if name == "aten::add.Tensor" and isinstance(args[1], int | float):
            pieces = tuple((piece, constant + args[1]) for piece, constant in origin.pieces)
            return replace(origin, pieces=pieces)
        return None

    def _joined(self, tensors: list[torch.Tensor], axis: int) -> Origin | None:
        origins = [self.origin(tensor) for tensor in tensors]
        known = [origin for origin in origins if origin is not None and not origin.transposed]
        if axis != 0 or len(known) < len(origins):
            return None
        return Origin(tuple(piece for origin in known for piece in origin.pieces))
