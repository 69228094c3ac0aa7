"""How much a runtime loses when it rounds the inputs of linear maps, as data."""

from __future__ import annotations

from dataclasses import dataclass

# Stands for the size of a block of activations that is a whole token's, whatever its length.
TOKEN = -1


@dataclass(frozen=True)
class ActivationGrid:
    """Rounding of activations, in blocks that share a scale.

    Attributes:
        block: activations that share a scale, or `TOKEN`.
        share_of_peak: mean squared error as a share of the square of the block's largest magnitude.
        share_of_own: as a share of the number's own square, where the grid is one of floating-point numbers.
    """

    block: int
    share_of_peak: float = 0.0
    share_of_own: float = 0.0


def integer_grid(bits: int, block: int) -> ActivationGrid:
    """Integers from -(2**(bits - 1) - 1) on: errors are uniform within a step."""
    return ActivationGrid(block, share_of_peak=1 / (12 * (2 ** (bits - 1) - 1) ** 2))


def float_grid(mantissa: int, block: int) -> ActivationGrid:
    """Numbers with so many bits after the leading one: uniform within a step, which grows with the number.

    Numbers are as often in any part of an octave by their logarithm, over which 1 / u² is 0.54 on average.
    """
    return ActivationGrid(block, share_of_own=0.541 * 4.0**-mantissa / 12)
