"""Small floating-point types that NumPy lacks: bfloat16, FP8 E4M3 and E5M2, FP4 E2M1.

Rounding is to the nearest value, ties to the even code, and saturates: what lies beyond the largest
finite value becomes that value. Sources: OCP 8-bit floating point specification 1.0 (E4M3, E5M2),
OCP microscaling (MX) specification 1.0 (E2M1).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fewbits.formats.format import Codes, Floats

# Largest finite bfloat16. Scales are capped so that no code decodes to more than this.
BFLOAT16_MAX = float(np.uint32(0x7F7F0000).view(np.float32))

FLOAT16_MAX = 65504.0

# Smallest normal float32 and bfloat16. No scale is smaller: GPU kernels flush subnormal numbers to zero.
SMALLEST_SCALE = 2.0**-126


def round_bfloat16(x: Floats) -> Floats:
    """The nearest bfloat16 values, as float32 of the same shape. |x| must not exceed `BFLOAT16_MAX`."""
    return round_significant(x, 8)


def round_significant(x: Floats, bits: int) -> Floats:
    """The nearest values of so many significant bits (24: as they are), of two as near the even one; same shape."""
    dropped = 24 - bits
    if not dropped:
        return x
    found = x.view(np.uint32)
    odd = found >> np.uint32(dropped)
    odd &= np.uint32(1)
    odd += np.uint32((1 << (dropped - 1)) - 1)
    odd += found
    odd &= np.uint32(0xFFFFFFFF << dropped & 0xFFFFFFFF)
    return odd.view(np.float32)


def round_float16(x: Floats) -> Floats:
    """The nearest float16 values, as float32 of the same shape; beyond the largest, the largest."""
    return np.clip(x, -FLOAT16_MAX, FLOAT16_MAX).astype(np.float16).astype(np.float32)


def bfloat16_bits(x: Floats) -> npt.NDArray[np.uint16]:
    """Bit patterns, uint16, of float32 values that are bfloat16 already."""
    return (x.view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def bfloat16_values(bits: npt.NDArray[np.uint16]) -> Floats:
    """The inverse of `bfloat16_bits`."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


@dataclass(frozen=True)
class Minifloat:
    """A floating-point type of at most 8 bits: sign | exponent | mantissa, from the highest bit down.

    Attributes:
        name: as the specifications call it.
        exponent_bits: width of the exponent; its bias is ``2**(exponent_bits - 1) - 1``.
        mantissa_bits: width of the mantissa.
        maximum: largest finite value.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    maximum: float

    @property
    def bias(self) -> int:
        """What the stored exponent is above the true one."""
        return int(2 ** (self.exponent_bits - 1) - 1)

    @property
    def sign(self) -> int:
        """The sign bit of a code."""
        return 1 << (self.exponent_bits + self.mantissa_bits)

    @cached_property
    def values(self) -> Floats:
        """The value of every code, float32 [codes]. What lies above `maximum` is infinity or NaN."""
        code = np.arange(self.sign)
        mantissa = code % (1 << self.mantissa_bits)
        exponent = code >> self.mantissa_bits
        normal = exponent > 0
        fraction = np.ldexp(mantissa.astype(np.float64), -self.mantissa_bits) + normal
        value = np.ldexp(fraction, np.where(normal, exponent, 1) - self.bias)
        # E4M3 gives up only the last code (NaN); E5M2 the last exponent: infinity, then NaN.
        beyond = np.where((mantissa == 0) & (exponent > 0), np.inf, np.nan)
        value = np.where(value > self.maximum, beyond, value).astype(np.float32)
        return np.concatenate([value, -value])

    def codes(self, x: Floats) -> Codes:
        """Codes of the nearest values: float32, infinities allowed, any shape -> uint8, same shape."""
        shift = np.uint32(23 - self.mantissa_bits)
        magnitude = np.minimum(np.abs(x), np.float32(self.maximum))
        bits = magnitude.view(np.uint32)
        # Normal numbers: round float32's bit pattern at the mantissa's last bit; a carry moves into
        # the exponent as it should.
        normal = bits >> shift
        normal &= np.uint32(1)
        normal += np.uint32((1 << (int(shift) - 1)) - 1)
        normal += bits
        normal >>= shift
        normal -= np.uint32((127 - self.bias) << self.mantissa_bits)
        # Subnormal numbers: adding a number whose last bit is their spacing rounds them to it.
        smallest = np.float32(2.0 ** (1 - self.bias))
        magic = np.float32(2.0 ** (1 - self.bias - self.mantissa_bits + 23))
        subnormal = (magnitude + magic).view(np.uint32) - magic.view(np.uint32)
        code = np.where(magnitude < smallest, subnormal, normal).astype(np.uint8)
        code |= np.signbit(x).view(np.uint8) * np.uint8(self.sign)
        return code

    def nearest(self, x: Floats) -> Floats:
        """The nearest values themselves, float32 of the same shape."""
        return self.values[self.codes(x)]


E4M3 = Minifloat("E4M3", 4, 3, 448.0)
E5M2 = Minifloat("E5M2", 5, 2, 57344.0)
E2M1 = Minifloat("E2M1", 2, 1, 6.0)
