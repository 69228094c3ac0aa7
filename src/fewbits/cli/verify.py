"""fewbits verify."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from typing import Annotated

import typer

from fewbits.cli.failure import reported
from fewbits.cli.progress import TerminalProgress

DIFFERS = 1


def verify(
    artifact: Annotated[str, typer.Argument(help="What fewbits made: a file or a folder.")],
    against: Annotated[str, typer.Option(help="The model it was made from.")],
    runtime: Annotated[
        str | None, typer.Option(help="Default: the container's, see `fewbits targets`.")
    ] = None,
    python: Annotated[
        str | None,
        typer.Option(help="Python or virtual environment that the runtime is installed in. Default: this."),
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="UTF-8 text file. Default: the language reference in Python.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Of the text, run as one sequence.")] = 128,
    timeout: Annotated[float, typer.Option(help="Seconds that the runtime may take.")] = 1800.0,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Load a quantized model in its runtime and compare logits; exit status 1 if they aren't those of its weights."""
    with reported():
        from fewbits.verification import verify as verify_artifact

        # Whatever libraries print is no part of the result.
        with redirect_stdout(sys.stderr), TerminalProgress() as progress:
            result = verify_artifact(
                artifact, against, runtime=runtime, python=python, text=text, tokens=tokens, timeout=timeout,
                progress=progress,
            )  # fmt: skip
        sys.stdout.write((json.dumps(asdict(result)) if json_output else result.describe()) + "\n")
        if not result.passed:
            raise SystemExit(DIFFERS)
