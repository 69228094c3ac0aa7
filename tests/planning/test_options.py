import numpy as np
import pytest

from fewbits.checkpoint.checkpoint import LazyTensor
from fewbits.errors import PlanError
from fewbits.export.exporter import OutputTensor
from fewbits.planning.knapsack import Option
from fewbits.planning.options import fixed_nbytes, holds, options_for, useful_formats


class Zeros(LazyTensor):
    def __init__(self, name, *shape):
        self.name, self.shape, self.dtype = name, shape, "F32"

    def rows(self, start, stop):
        return np.zeros((stop - start, self.shape[-1]), np.float32)


class Container:
    name = "gguf"
    formats = ("Q8_0", "Q6_K", "Q5_1", "Q5_K", "Q5_0", "Q4_1", "Q4_K", "Q4_0", "IQ4_NL", "Q3_K")
    candidates = formats
    plain_formats = ("F32", "F16", "BF16")
    fallbacks = True

    @staticmethod
    def tied(_tensors):
        return []

    alignment = 32


def tensor(name, *shape, quantizable=True):
    return OutputTensor(name, Zeros(name, *shape), "linear", quantizable)


def test_formats_that_another_one_beats_are_not_worth_a_price():
    # Rows of 64: no k-quants. Q4_0 has as many bytes as IQ4_NL and a larger error.
    assert useful_formats(tensor("a", 8, 64), Container()) == ["IQ4_NL", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
    # Rows of 256: Q5_K beats Q5_0 and Q4_K beats IQ4_NL at equal bytes.
    wide = useful_formats(tensor("a", 8, 256), Container())
    assert wide == ["Q3_K", "Q4_K", "Q4_1", "Q5_K", "Q5_1", "Q6_K", "Q8_0"]
    assert useful_formats(tensor("norm", 64, quantizable=False), Container()) == []


def test_options_are_exact_with_alignment_and_without_fallbacks():
    tensors = [tensor("a", 3, 64), tensor("norm", 65, quantizable=False)]
    prices = {"a": {"Q4_0": 3.0, "Q8_0": 0.5, "Q6_K": 1.0, "F16": 0.0, "NF4": 2.0}}
    # Q4_0: 6 blocks of 18 bytes = 108 -> 128; Q8_0: 6 of 34 = 204 -> 224; F16: 384. Q6_K doesn't divide 64.
    expected = [Option(128, 3.0, "Q4_0"), Option(224, 0.5, "Q8_0"), Option(384, 0.0, "F16")]
    assert options_for(tensors, Container(), prices) == {"a": expected}
    assert fixed_nbytes(tensors, Container()) == 288  # 65 floats of 4 bytes, to a multiple of 32


@pytest.mark.parametrize("prices", [{}, {"a": {"Q6_K": 1.0}}])
def test_a_tensor_without_a_price_is_an_error(prices):
    with pytest.raises(PlanError, match="a has no price"):
        options_for([tensor("a", 3, 64)], Container(), prices)


def test_a_tensor_can_be_stored_in_more_than_is_worth_a_price():
    narrow = tensor("a", 8, 64)
    able = [
        name
        for name in (*Container.formats, "F16", "BF16", "IQ4_XS", "INT4")
        if holds(narrow, name, Container())
    ]
    assert able == ["Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL", "F16", "BF16"]
    assert not holds(tensor("norm", 64, quantizable=False), "Q8_0", Container())
