"""fewbits generate."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, cast

import typer

from fewbits.cli.failure import reported
from fewbits.cli.sampling_options import MinP, RepetitionPenalty, Threads, TopK, TopP

if TYPE_CHECKING:
    from fewbits.generation import Runtime


def generate(
    path: Annotated[str, typer.Argument(help="GGUF file, Hugging Face directory, or hub id.")],
    prompt: Annotated[str, typer.Argument(help="Text to continue.")],
    n: Annotated[int, typer.Option("-n", help="Tokens at most.")] = 64,
    temperature: Annotated[float, typer.Option(help="0: always the most likely token.")] = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text. May be given again.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Use the model's chat template.")] = False,
    speculate: Annotated[
        bool, typer.Option("--speculate", help="Guess tokens by what the text said before. Same output.")
    ] = False,
    threads: Threads = None,
    runtime: Annotated[
        str, typer.Option(help="engine, transformers, or auto: the engine for GGUF files that it knows.")
    ] = "auto",
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
                chat=chat,
                threads=threads,
                on_text=None if json_output else show,
                runtime=cast("Runtime", runtime),  # checked by `continue_prompt`
                stop=stop or (),
                speculate=speculate,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
                repetition_penalty=repetition_penalty,
                seed=seed,
            )
        output.write((json.dumps(asdict(result)) if json_output else "") + "\n")
        if not json_output:
            sys.stderr.write(f"{result.tokens} tokens, {result.tokens_per_second:.1f} tokens/s\n")
