"""fewbits imatrix."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from typing import Annotated

import typer

from fewbits.cli.failure import reported
from fewbits.cli.progress import TerminalProgress
from fewbits.cli.quantize import CALIBRATION


def imatrix(
    source: Annotated[str, typer.Argument(help="Hugging Face directory, hub id, or GGUF file.")],
    output: Annotated[str, typer.Argument(help="The importance matrix to make, a GGUF file.")],
    calibration: Annotated[str | None, typer.Option(help=CALIBRATION)] = None,
    tokens: Annotated[int | None, typer.Option(help="Of the text. Default: as --effort balanced.")] = None,
    memory: Annotated[str, typer.Option(help="Memory that the run may hold.")] = "4GB",
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Calibrate, and write an importance matrix for llama-quantize or `quantize --imatrix`."""
    with reported(interrupted="interrupted; what is done is kept: the same command goes on from here"):
        from fewbits.pipeline.export_imatrix import imatrix as export

        # Whatever libraries print is no part of the result.
        with redirect_stdout(sys.stderr), TerminalProgress() as progress:
            result = export(
                source, output, calibration=calibration, tokens=tokens, memory=memory, seed=seed, force=force,
                progress=progress,
            )  # fmt: skip
        sys.stdout.write((json.dumps(asdict(result)) if json_output else result.describe()) + "\n")
