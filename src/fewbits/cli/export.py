"""fewbits export."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from fewbits.cli.failure import reported
from fewbits.cli.progress import TerminalProgress
from fewbits.cli.quantize import RESUME_HINT


def export(
    source: Annotated[str, typer.Argument(help="A quantized model: GGUF file or Hugging Face directory.")],
    output: Annotated[str, typer.Argument(help="The file or folder to make.")],
    to: Annotated[str, typer.Option(help="Container to write, see `fewbits targets`.")],
    memory: Annotated[str, typer.Option(help="Memory that the run may hold.")] = "4GB",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Write a quantized model in another container with the same numbers, or say why it can't hold them."""
    with reported(interrupted=RESUME_HINT):
        from fewbits.pipeline.repack import repack

        with TerminalProgress() as progress:
            result = repack(source, output, to=to, memory=memory, force=force, progress=progress)
        sys.stdout.write((json.dumps(asdict(result)) if json_output else result.describe()) + "\n")
