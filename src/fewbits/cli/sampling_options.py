"""The options of commands that draw tokens."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

TopK: TypeAlias = Annotated[int, typer.Option(help="Draw from this many of the most likely tokens; 0: all.")]
TopP: TypeAlias = Annotated[
    float, typer.Option(help="Draw from the most likely tokens that together have this probability; 1: all.")
]
MinP: TypeAlias = Annotated[
    float, typer.Option(help="Draw from tokens with this share of the largest probability or more; 0: all.")
]
RepetitionPenalty: TypeAlias = Annotated[
    float, typer.Option(help="Make the last 64 tokens less likely: more than 1; 1: don't.")
]
Threads: TypeAlias = Annotated[int | None, typer.Option(help="Default: all cores.")]
Context: TypeAlias = Annotated[
    int | None, typer.Option(help="Tokens that a text may have. Default: the model's, 4096 at most.")
]
KvCache: TypeAlias = Annotated[
    str, typer.Option("--kv-cache", help="How keys and values are kept: f16, q8 or q4.")
]
