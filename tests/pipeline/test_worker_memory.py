from __future__ import annotations

import numpy as np
import pytest

from fewbits.checkpoint.checkpoint import Floats, LazyTensor
from fewbits.export.exporter import OutputTensor
from fewbits.pipeline.calibrated import by_workers, calibrated_memory, workers_within
from fewbits.pipeline.memory import BASE_MEMORY, TORCH_MEMORY


class Zeros(LazyTensor):
    dtype = "BF16"

    def __init__(self, *shape: int) -> None:
        self.name, self.shape = "w", shape

    def rows(self, start: int, stop: int) -> Floats:
        return np.zeros((stop - start, self.shape[-1]), np.float32)


# The largest maps of a model of 135 million parameters, and of one of 8 billion.
SMALL, LARGE = (OutputTensor("w", Zeros(*shape), "linear", True) for shape in ((576, 1536), (4096, 14336)))


@pytest.mark.parametrize(("tensor", "memory", "workers"), [
    (SMALL, 4_000_000_000, 8), (LARGE, 4_000_000_000, 1), (LARGE, 8_000_000_000, 1), (LARGE, 32_000_000_000, 5),
])  # fmt: skip
def test_as_many_workers_as_memory_has_room_for(tensor: OutputTensor, memory: int, workers: int) -> None:
    assert workers_within([tensor], 8, memory) == workers


def test_what_runs_at_once_fits() -> None:
    for memory in (10_000_000_000, 20_000_000_000, 40_000_000_000):
        workers = workers_within([SMALL, LARGE], 64, memory)
        assert BASE_MEMORY + TORCH_MEMORY + calibrated_memory([SMALL, LARGE], workers) <= memory
        assert BASE_MEMORY + TORCH_MEMORY + calibrated_memory([SMALL, LARGE], workers + 1) > memory


def test_tensors_are_worked_on_with_others_that_need_as_much_memory() -> None:
    tensors = [LARGE, SMALL, LARGE, SMALL]
    small, large = by_workers(tensors, 8, 8_000_000_000)
    assert (small.workers, small.threads, small.tensors) == (8, 1, (SMALL, SMALL))
    assert (large.workers, large.threads, large.tensors) == (1, 8, (LARGE, LARGE))
    assert [group.tensors for group in by_workers(tensors, 1, 8_000_000_000)] == [tuple(tensors)]
