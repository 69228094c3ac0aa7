"""fewbits plan."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from fewbits.cli.failure import reported
from fewbits.cli.progress import TerminalProgress


def plan(
    source: Annotated[str, typer.Argument(help="Hugging Face directory, hub id, or GGUF file.")],
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="The plan file; default: print it.")
    ] = None,
    to: Annotated[str, typer.Option(help="Container the plan is for.")] = "gguf",
    format_name: Annotated[str | None, typer.Option("--format", metavar="NAME", help="One format.")] = None,
    bits: Annotated[float | None, typer.Option(help="Average bits per weight, at most.")] = None,
    size: Annotated[str | None, typer.Option(help="Size of the output, at most, e.g. 91MB.")] = None,
    max_kl: Annotated[
        float | None, typer.Option(help="Predicted KL divergence, at most: the smallest such file.")
    ] = None,
    pin: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN=FORMAT", help="Fix the format of some tensors.")
    ] = None,
    effort: Annotated[str, typer.Option(help="As for quantize; balanced and best calibrate.")] = "fast",
    calibration: Annotated[str | None, typer.Option(help="Text file or JSONL for balanced and best.")] = None,
    memory: Annotated[str, typer.Option(help="Memory that the run may hold.")] = "4GB",
    threads: Annotated[int | None, typer.Option(help="Default: all cores.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing plan file.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Choose a format for every tensor and write the choice as a file that can be edited."""
    with reported():
        from fewbits.pipeline.plan import plan as make_plan
        from fewbits.pipeline.quantize import check_output
        from fewbits.planning.byte_size import format_bytes

        if output is not None:
            check_output(Path(output), force=force)
        with TerminalProgress() as progress:
            made = make_plan(
                source, to=to, format=format_name, bits=bits, size=size, max_kl=max_kl, pins=pin or (),
                effort=effort, calibration=calibration, memory=memory, threads=threads, seed=seed,
                progress=progress,
            )  # fmt: skip
        text = made.to_json()
        if output is not None:
            temporary = Path(output).with_name(Path(output).name + ".fewbits-part")
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(output)
        if json_output:
            sys.stdout.write(json.dumps(json.loads(text)) + "\n")
        elif output is None:
            sys.stdout.write(text)
        else:
            sys.stdout.write(
                f"{output}: {len(made.tensors)} tensors, {format_bytes(made.size)} ({made.size:,} bytes), "
                f"{made.bits_per_weight:.3f} bits per weight\n"
            )
