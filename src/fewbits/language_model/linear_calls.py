"""Standing in for the linear maps of a live model, whatever module they are in."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode


class LinearCalls(TorchFunctionMode):
    """Within this context `compute` is called instead of PyTorch's `linear`."""

    @abstractmethod
    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """X Wᵀ + bias of x [..., K] and weight [N, K]: [..., N]."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Called by PyTorch for every function of tensors."""
        del types
        if func is linear and len(args) > 1:
            return self.compute(args[0], args[1], args[2] if len(args) > 2 else (kwargs or {}).get("bias"))
        return func(*args, **(kwargs or {}))
