"""How far a runtime's logits may be from those of our own numbers, and why.

    P   the original            Q   our dequantized weights            R   the runtime

    KL(Q || R)  <=  0.01 * KL(P || Q)  +  max(1e-6, 4 * KL(Q || Q in the runtime's dtype))  +  2 * KL(W || Q)

KL is quadratic in the error of logits, so the first term lets the runtime's own error be a tenth of the size of the
quantization's. Whatever is wrong with a file (a scale of the wrong group, nibbles swapped, columns permuted, a tensor
taken for another) is an error of the quantization's size or larger. The second term is what the same weights lose
with activations in the dtype that the runtime computes in, measured on the same text: twice that error (four times in
KL) for an implementation that rounds at other places; for float32 a constant, since sums in another order move KL by
less. The third counts where the runtime rounds activations, or keys and values, to 8 bits as well: W is Q without that.
Two such roundings that share no code would be twice as far from each other as either from W.
"""

from __future__ import annotations

from dataclasses import dataclass

SHARE = 0.01
FLOAT32 = 1e-6
ARITHMETIC = 4.0
ACTIVATIONS = 2.0


@dataclass(frozen=True)
class Allowance:
    """The most that KL(Q || R) may be, in nats per token, by what it is for.

    Attributes:
        quantization: share of what the quantization costs.
        arithmetic: for the dtype of activations.
        activations: for activations, or keys and values, rounded to 8 bits; 0 where none are.
    """

    quantization: float
    arithmetic: float
    activations: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.quantization + self.arithmetic + self.activations


def allowance(quantization: float, arithmetic: float, activations: float) -> Allowance:
    """See the module.

    Args:
        quantization: KL(P || Q), nats per token.
        arithmetic: KL(Q || Q in the runtime's dtype); 0 for float32.
        activations: KL(W || Q); 0 where neither activations nor keys and values are rounded.
    """
    return Allowance(
        SHARE * max(quantization, 0.0),
        max(FLOAT32, ARITHMETIC * arithmetic),
        ACTIVATIONS * max(activations, 0.0),
    )
