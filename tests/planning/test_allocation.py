from typing import ClassVar

import numpy as np
import pytest

from fewbits.checkpoint.checkpoint import LazyTensor
from fewbits.errors import BudgetError, FormatError, PlanError
from fewbits.export.exporter import OutputTensor
from fewbits.planning.allocation import (
    allocate,
    check_choices,
    gaussian_error,
    predicted_error,
    refuse_fallbacks,
    resolve,
    tensor_nbytes,
    uniform,
)
from fewbits.planning.plan import TensorChoice


class Zeros(LazyTensor):
    def __init__(self, name, *shape):
        self.name, self.shape, self.dtype = name, shape, "F32"

    def rows(self, start, stop):
        return np.zeros((stop - start, self.shape[-1]), np.float32)


class Container:
    name = "gguf"
    formats = ("Q8_0", "Q6_K", "Q5_K", "Q5_0", "Q4_K", "Q4_0", "IQ4_XS", "Q3_K", "Q2_K")
    candidates = formats
    plain_formats = ("F32", "F16", "BF16")
    fallbacks = True
    hardware = ""
    head_formats: ClassVar[dict[str, str]] = {}

    @staticmethod
    def tied(_tensors):
        return []


def output(name, role, *shape):
    return OutputTensor(name, Zeros(name, *shape), role, quantizable=role != "other")


MODEL = [
    output("token_embd.weight", "embedding", 1000, 256),
    output("blk.0.attn_norm.weight", "other", 256),
    output("blk.0.attn_q.weight", "linear", 256, 256),
    output("blk.0.ffn_down.weight", "linear", 256, 768),
]


def data_bytes(choices):
    return sum(tensor_nbytes(t, choices[t.name].format) for t in MODEL)


@pytest.mark.parametrize(
    ("name", "columns", "expected"),
    [
        ("Q4_K", 256, "Q4_K"),
        ("Q4_K", 576, "Q5_0"),
        ("Q2_K", 576, "IQ4_NL"),
        ("Q6_K", 96, "Q8_0"),
        ("q4_0", 40, "F16"),
    ],
)
def test_rows_that_a_block_does_not_divide_go_down_the_ladder(name, columns, expected):
    assert resolve(name, [(0, columns)], Container.plain_formats) == expected


def test_a_fallback_is_recorded_with_what_was_asked():
    wide = [output("a.weight", "linear", 4, 576)]

    assert uniform(wide, Container, "Q4_K")["a.weight"] == TensorChoice("Q5_0", "rtn", requested="Q4_K")


class Fused(Container):
    """The two longest names are one matrix to its runtime."""

    @staticmethod
    def tied(tensors):
        return [[t.name for t in tensors if t.role == "linear"]]


class Single(Container):
    """Its files have one format for all."""

    fallbacks = False


def test_a_fallback_is_one_for_tensors_that_share_a_format():
    mixed = [
        output("a.weight", "linear", 4, 576),
        output("b.weight", "linear", 4, 256),
        output("token_embd.weight", "embedding", 4, 256),
    ]

    alone, fused, single = (uniform(mixed, c, "Q4_K") for c in (Container, Fused, Single))

    assert [c.format for c in alone.values()] == ["Q5_0", "Q4_K", "Q4_K"]
    assert [c.format for c in fused.values()] == ["Q5_0", "Q5_0", "Q4_K"]
    assert set(single.values()) == {TensorChoice("Q5_0", "rtn", requested="Q4_K")}
    refuse_fallbacks(fused, Fused)
    with pytest.raises(FormatError, match=r"Q4_K, whose block is 256.*--format Q5_0"):
        refuse_fallbacks(single, Single)


def test_an_unknown_format_is_refused_with_those_there_are():
    with pytest.raises(FormatError, match="Q4_K"):
        uniform(MODEL, Container, "Q4_X")


@pytest.mark.parametrize("limit", [600_000, 400_000, 250_000, 180_000])
def test_allocation_keeps_to_the_size_and_no_candidate_under_it_is_better(limit):
    chosen = allocate(MODEL, Container, data_bytes, size=limit)

    assert data_bytes(chosen) <= limit
    for linear in Container.formats:
        for head in Container.formats:
            other = uniform(MODEL, Container, linear, head)
            if data_bytes(other) <= limit:
                assert predicted_error(MODEL, chosen) <= predicted_error(MODEL, other)


def test_allocation_by_bits_counts_every_tensor():
    weights = sum(int(np.prod(t.shape)) for t in MODEL)
    chosen = allocate(MODEL, Container, data_bytes, bits=4.6)

    assert 4.3 < 8 * data_bytes(chosen) / weights <= 4.6


def test_a_size_out_of_reach_names_the_smallest_which_is_then_reached():
    with pytest.raises(BudgetError) as refused:
        allocate(MODEL, Container, data_bytes, size=1000)
    smallest = int(str(refused.value).split("at least ")[1].split(" bytes")[0].replace(",", ""))

    assert data_bytes(allocate(MODEL, Container, data_bytes, size=smallest)) == smallest


def test_more_bits_cost_less_error():
    errors = [gaussian_error(name) for name in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")]

    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-4 < 2e-2 < errors[0]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"blk.9.extra": TensorChoice("Q4_K")}, r"blk\.9\.extra"),
        ({"blk.0.attn_norm.weight": TensorChoice("Q4_K")}, "floating point"),
        ({"blk.0.attn_q.weight": TensorChoice("INT4_G64")}, "INT4_G64"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(change, named):
    choices = uniform(MODEL, Container, "Q4_K") | change

    with pytest.raises(PlanError, match=named):
        check_choices(MODEL, Container, choices)


def test_a_plan_without_some_tensor_is_refused_by_name():
    choices = uniform(MODEL, Container, "Q4_K")
    del choices["blk.0.attn_q.weight"]

    with pytest.raises(PlanError, match=r"blk\.0\.attn_q"):
        check_choices(MODEL, Container, choices)


def test_pinned_tensors_are_part_of_what_the_budget_buys():
    def size(choices):
        return data_bytes(choices)

    pinned = {"token_embd.weight": TensorChoice("F16", "none")}
    chosen = allocate(MODEL, Container(), size, size=700_000, pinned=pinned)
    assert chosen["token_embd.weight"] == TensorChoice("F16", "none")
    assert size(chosen) <= 700_000
    # A smaller format for the others alone would have done without the pin.
    assert size({**allocate(MODEL, Container(), size, size=700_000), **pinned}) > 700_000
    with pytest.raises(BudgetError, match="at least"):
        allocate(MODEL, Container(), size, size=500_000, pinned=pinned)
