"""fewbits evaluate."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, cast

import typer

from fewbits.cli.failure import reported
from fewbits.cli.progress import TerminalProgress

if TYPE_CHECKING:
    from fewbits.evaluation.language_model import Activations
    from fewbits.evaluation.open_models import Runtime

KV_CACHE = (
    "Round keys and values as a runtime's cache does, e.g. q8_0, q8_0/q4_0, fp8, int8_per_token_head; float: not at "
    "all. Default: as the model's config says, else float."
)


def evaluate(
    quantized: Annotated[str, typer.Argument(help="GGUF file, Hugging Face directory, or hub id.")],
    against: Annotated[str, typer.Option(help="The model it was made from.")],
    text: Annotated[
        str | None, typer.Option(help="UTF-8 text file. Default: the language reference in Python.")
    ] = None,
    context: Annotated[int, typer.Option(help="Tokens per chunk; the second half is scored.")] = 512,
    chunks: Annotated[int, typer.Option(help="Chunks to score; fewer if the text is shorter.")] = 24,
    threads: Annotated[int | None, typer.Option(help="Default: all cores.")] = None,
    activations: Annotated[
        str, typer.Option(help="runtime: rounded as llama.cpp does for GGUF files; float: weights alone.")
    ] = "runtime",
    kv_cache: Annotated[str | None, typer.Option(metavar="NAME", help=KV_CACHE)] = None,
    runtime: Annotated[
        str, typer.Option(help="engine, transformers, or auto: the engine for GGUF files that it knows.")
    ] = "auto",
    json_output: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Compare a quantized model with its source: KL divergence, perplexity, top-1 agreement."""
    with reported():
        from fewbits.evaluation.comparison import evaluate as compare

        # Whatever libraries print is no part of the result.
        with redirect_stdout(sys.stderr), TerminalProgress() as progress:
            result = compare(
                quantized,
                against,
                text=text,
                context=context,
                chunks=chunks,
                threads=threads,
                activations=cast("Activations", activations),  # checked by `compare`
                kv_cache=kv_cache,
                runtime=cast("Runtime", runtime),
                progress=progress,
            )
        sys.stdout.write((json.dumps(asdict(result)) if json_output else result.describe()) + "\n")
