"""fewbits generate."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from typing import Annotated

import typer

from fewbits.cli.failure import reported


def generate(
    path: Annotated[str, typer.Argument(help="GGUF file, Hugging Face directory, or hub id.")],
    prompt: Annotated[str, typer.Argument(help="Text to continue.")],
    n: Annotated[int, typer.Option("-n", help="Tokens at most.")] = 64,
    temperature: Annotated[float, typer.Option(help="0: always the most likely token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    chat: Annotated[bool, typer.Option("--chat", help="Use the model's chat template.")] = False,
    threads: Annotated[int | None, typer.Option(help="Default: all cores.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Let a model continue a prompt."""
    with reported():
        from fewbits.generation import generate as continue_prompt

        output = sys.stdout

        def show(piece: str) -> None:
            output.write(piece)
            output.flush()

        # Whatever libraries print is no part of the result.
        with redirect_stdout(sys.stderr):
            result = continue_prompt(
                path,
                prompt,
                n=n,
                temperature=temperature,
                seed=seed,
                chat=chat,
                threads=threads,
                on_text=None if json_output else show,
            )
        output.write((json.dumps(asdict(result)) if json_output else "") + "\n")
        if not json_output:
            sys.stderr.write(f"{result.tokens} tokens, {result.tokens_per_second:.1f} tokens/s\n")
