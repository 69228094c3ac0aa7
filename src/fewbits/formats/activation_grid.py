"""How much a runtime loses when it rounds the inputs of linear maps, as data."""

from __future__ import annotations

from dataclasses import dataclass

# Stands for the size of a block of activations that is a whole token's, whatever its length.
TOKEN = -1
_COARSE = 1e-4


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

    @property
    def coarse(self) -> bool:
        """Whether as much may be lost of activations as of weights in 4 bits, and far more than by 8-bit integers."""
        return self.share_of_peak > _COARSE


def integer_grid(bits: int, block: int) -> ActivationGrid:
    """Integers from -(2**(bits - 1) - 1) on: errors are uniform within a step."""
    return ActivationGrid(block, share_of_peak=1 / (12 * (2 ** (bits - 1) - 1) ** 2))


def float_grid(mantissa: int, block: int, least_step: float = 0.0) -> ActivationGrid:
    """Numbers with so many bits after the leading one: uniform within a step, which grows with the number.

    Numbers are as often in any part of an octave by their logarithm, over which 1 / u² is 0.54 on average. Those near
    zero are as far apart as the smallest step, given as a share of the largest number.
    """
    return ActivationGrid(block, least_step**2 / 12, 0.541 * 4.0**-mantissa / 12)
