"""How many threads PyTorch computes with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fewbits.errors import EvaluationError


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Run with this many CPU threads, and restore the number afterwards.

    Raises:
        EvaluationError: the number isn't positive.
    """
    import torch

    if threads is not None and threads < 1:
        raise EvaluationError("there must be a thread to run on", found=threads, allowed="1 or more")
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
