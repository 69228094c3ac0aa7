"""Rounding a panel of columns: the kernels are their specification, for every format that has them."""

from pathlib import Path

import numpy as np
import pytest

from fewbits.algorithms.columns import PANEL, move_columns, move_panel, round_columns, round_panel
from fewbits.formats import get_format
from instruction_sets import printed_on

FORMATS = ["Q8_0", "Q5_0", "Q5_1", "IQ4_NL", "Q6_K", "Q4_K", "Q3_K", "Q2_K", "IQ4_XS"]


def panel(name, first, rows=45):
    """Format, params, places, columns [W, R], decoded values, codes, gradient and a Hessian [W, W]."""
    rng = np.random.default_rng(0)
    fmt = get_format(name)
    weight = (rng.standard_t(4, (rows, fmt.block)) * 0.02).astype(np.float32)
    weight[0] = 0
    weight[1, 3] = 1e30
    weight[2] = 1e-9
    params = fmt.fit(weight)
    places = np.arange(first, first + PANEL, dtype=np.int32)
    inputs = rng.standard_normal((3 * PANEL, PANEL)).astype(np.float32)
    hessian = inputs.T @ inputs / np.float32(PANEL)
    codes = fmt.round(weight, params)
    columns, values, codes = (
        np.ascontiguousarray(a.T[places]) for a in (weight, fmt.decode(codes, params), codes)
    )
    gradient = hessian @ rng.normal(0, 0.02, columns.shape).astype(np.float32)
    return fmt, params, places, columns, values, codes, gradient, hessian


def rounded(run, name, first):
    fmt, params, places, columns, _, codes, _, hessian = panel(name, first)
    aim, error = columns.copy(), np.zeros_like(columns)
    run(fmt, params, places, aim, columns, error, codes, hessian)
    return aim, error, codes


def moved(run, name, first):
    fmt, params, places, _, values, codes, gradient, hessian = panel(name, first)
    moves = np.zeros_like(values)
    run(fmt, params, places, gradient, values, codes, moves, hessian)
    assert np.count_nonzero(moves) > 100
    return gradient, values, codes, moves


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_the_kernels_find_what_the_specification_finds(name, last):
    fmt = get_format(name)
    first = fmt.block - PANEL if last else 0
    assert fmt.scaled_grid(fmt.fit(np.ones((1, fmt.block), np.float32)), slice(0, 1)) is not None

    for found, expected in zip(
        rounded(round_panel, name, first), rounded(round_columns, name, first), strict=True
    ):
        assert found.tobytes() == expected.tobytes()
    for found, expected in zip(moved(move_panel, name, first), moved(move_columns, name, first), strict=True):
        assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", ["Q5_1", "IQ4_NL", "Q4_K"])
def test_columns_in_any_order(name):
    """In a sweep a group's columns come by importance."""
    found = []
    for run in (round_panel, round_columns):
        fmt, params, places, columns, _, codes, _, hessian = panel(name, 0)
        order = np.random.default_rng(3).permutation(PANEL)
        aim, error = columns[order], np.zeros_like(columns)
        run(fmt, params, places[order], aim, columns[order], error, codes, hessian)
        found.append((aim.tobytes(), error.tobytes(), codes.tobytes()))
    assert found[0] == found[1]


@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_every_instruction_set_gives_the_same_bytes(isa):
    script = (
        f"import sys, hashlib; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_columns as t;"
        "from fewbits import _native; h = hashlib.sha256();"
        "[h.update(a.tobytes()) for n in t.FORMATS for a in"
        " (*t.rounded(t.round_panel, n, 0), *t.moved(t.move_panel, n, 0))];"
        "print(_native.isa(), h.hexdigest())"
    )
    assert printed_on(isa, script) == printed_on(None, script)
