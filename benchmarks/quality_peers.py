"""The files of llama-quantize that fewbits is measured against: its presets, and mixes made by hand that pass them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """One way to call llama-quantize, always with the importance matrix.

    Attributes:
        name: in the table.
        kind: preset or type, llama-quantize's name.
        options: what else it is called with.
        mix: whether the mix was made by hand.
    """

    name: str
    kind: str
    options: tuple[str, ...] = ()
    mix: bool = False


def pure(kind: str, embedding: str, down_and_gate: str = "") -> Recipe:
    """`kind` for every linear layer, another type for ffn_down and ffn_gate if given, and one for the embedding."""
    options = ["--pure", "--token-embedding-type", embedding.lower()]
    if down_and_gate:
        for layer in ("ffn_down", "ffn_gate"):
            options += ["--tensor-type", f"{layer}={down_and_gate.lower()}"]
    layers = f"{kind}/{down_and_gate}" if down_and_gate else kind
    return Recipe(f"{layers} + {embedding}", kind, tuple(options), mix=True)


PRESETS = tuple(
    Recipe(name, name)
    for name in (
        "IQ2_M", "IQ3_XXS", "Q2_K", "IQ4_XS", "Q4_0", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0",
    )
)  # fmt: skip
# Linear layers + embedding. Blocks of 32 fit every row; the last two groups are for rows of multiples of 256.
MIXES = (
    pure("IQ4_NL", "Q5_0"),
    pure("IQ4_NL", "Q5_1"),
    pure("Q5_0", "Q5_0", down_and_gate="IQ4_NL"),
    pure("IQ4_NL", "Q8_0"),
    pure("Q5_0", "Q5_0"),
    pure("Q5_1", "Q5_1"),
    pure("Q8_0", "Q5_1"),
    pure("Q8_0", "Q8_0"),
)
MIXES_OF_256 = (
    pure("Q3_K", "Q5_K"),
    pure("IQ4_XS", "Q5_K"),
    pure("IQ4_XS", "Q6_K"),
    pure("Q4_K", "Q6_K"),
    pure("Q5_K", "Q6_K"),
    pure("Q6_K", "Q6_K"),
)


def recipes_for(row_lengths: set[int]) -> tuple[Recipe, ...]:
    """The recipes worth measuring on a model whose matrices have rows of these lengths."""
    wide = all(length % 256 == 0 for length in row_lengths)
    return PRESETS + MIXES + (MIXES_OF_256 if wide else ())
