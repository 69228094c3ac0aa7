"""Views give the numbers that NumPy gives, whichever rows are asked for, and read no more than they need."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.checkpoint.checkpoint import Floats, LazyTensor
from fewbits.checkpoint.views import Permuted, Renamed, Reshaped, RowRange, Shifted, Stacked, Transposed


class Recorded(LazyTensor):
    """A tensor in memory that counts the rows that are read from it."""

    def __init__(self, *shape: int, name: str = "w", seed: int = 0) -> None:
        self.name, self.shape, self.dtype = name, shape, "F32"
        self.values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
        self.rows_read = 0

    def rows(self, start: int, stop: int) -> Floats:
        assert 0 <= start <= stop <= self.matrix[0]
        self.rows_read += stop - start
        return self.values.reshape(self.matrix)[start:stop].copy()


def check(view: LazyTensor, expected: np.ndarray) -> None:
    """Whole, in chunks of several sizes, and every range of rows."""
    assert view.shape == expected.shape
    np.testing.assert_array_equal(view.read(), expected)
    n, k = view.matrix
    for elements in (1, k, 3 * k, expected.size):
        pieces = [np.empty((0, k), np.float32), *view.chunks(elements)]
        np.testing.assert_array_equal(np.concatenate(pieces), expected.reshape(n, k))
    for start in range(n):
        for stop in range(start, n + 1):
            np.testing.assert_array_equal(view.rows(start, stop), expected.reshape(n, k)[start:stop])


@given(st.lists(st.integers(0, 11), max_size=14))
def test_permuted(rows):
    base = Recorded(12, 5)
    check(Permuted(base, rows, "p", (len(rows), 5)), base.values[rows])


def test_permuted_as_rotary_heads_are():
    base = Recorded(2 * 64, 3)
    index = np.arange(128).reshape(2, 2, 32).swapaxes(1, 2).reshape(-1)
    view = Permuted(base, index)
    np.testing.assert_array_equal(view.read(), base.values[index])
    base.rows_read = 0
    view.rows(0, 4)  # rows 0, 32, 1, 33

    assert base.rows_read == 4
    assert (view.name, view.shape, view.dtype) == ("w", (128, 3), "F32")


def test_permuted_vector_of_rows_of_one():
    base = Recorded(6, 1)
    check(Permuted(base, [5, 4, 3, 2, 1, 0]), base.values[::-1])


@pytest.mark.parametrize("index", [[0, 12], [-1], [[0, 1]]])
def test_permuted_refuses_rows_that_are_not_there(index):
    with pytest.raises(ValueError, match="rows 0 … 11"):
        Permuted(Recorded(12, 5), index)


def test_stacked_experts():
    parts = [Recorded(3, 4, seed=i) for i in range(4)]
    check(Stacked(parts, "experts"), np.stack([p.values for p in parts]))


def test_stacked_reads_only_the_parts_it_needs():
    parts = [Recorded(3, 4, seed=i) for i in range(4)]
    Stacked(parts, "experts").rows(4, 7)

    assert [p.rows_read for p in parts] == [0, 2, 1, 0]


def test_stacked_parts_of_different_heights():
    parts = [Recorded(3, 4), Recorded(1, 4, seed=1), Recorded(2, 2, 4, seed=2)]
    expected = np.concatenate([p.values.reshape(-1, 4) for p in parts])
    check(Stacked(parts, "qkv", (8, 4)), expected)
    for refused in ([*parts, Recorded(3, 5)], [], parts):
        with pytest.raises(ValueError, match="can't be stacked"):
            Stacked(refused, "qkv")
    with pytest.raises(ValueError, match="can't be stacked from 8 rows"):
        Stacked(parts, "qkv", (7, 4))


def test_row_range():
    base = Recorded(2, 5, 3)
    check(RowRange(base, 2, 9, "r"), base.values.reshape(10, 3)[2:9])
    check(RowRange(base, 2, 8, "r", (2, 3, 3)), base.values.reshape(10, 3)[2:8].reshape(2, 3, 3))
    with pytest.raises(ValueError, match="which has 10"):
        RowRange(base, 2, 11)


def test_shifted():
    base = Recorded(7)
    check(Shifted(base, 1.0), base.values + np.float32(1))
    np.testing.assert_array_equal(base.read(), base.values)


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (24,), (24, 1), (2, 3, 4), (1, 24), (3, 8)])
@pytest.mark.parametrize("base", [(4, 6), (2, 3, 4), (24,), (24, 1)])
def test_reshaped(base, shape):
    tensor = Recorded(*base)
    check(Reshaped(tensor, shape), tensor.values.reshape(shape))
    with pytest.raises(ValueError, match="doesn't fit"):
        Reshaped(tensor, (5, 5))


def test_transposed():
    base = Recorded(5, 7)
    check(Transposed(base), base.values.T)
    with pytest.raises(ValueError, match="not a matrix"):
        Transposed(Recorded(5))


def test_renamed():
    base = Recorded(2, 3)
    view = Renamed(base, "new")
    check(view, base.values)
    assert (view.name, view.dtype, base.name) == ("new", "F32", "w")


def test_views_of_views():
    parts = [Recorded(4, 6, seed=i) for i in range(2)]
    view = Shifted(Permuted(Stacked(parts, "s", (8, 6)), [7, 0, 3, 4], "p"), 1)
    check(view, np.concatenate([p.values for p in parts])[[7, 0, 3, 4]] + np.float32(1))
