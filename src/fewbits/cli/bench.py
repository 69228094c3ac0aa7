"""fewbits bench."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, cast

import typer

from fewbits.cli.failure import reported
from fewbits.cli.progress import TerminalProgress
from fewbits.cli.sampling_options import KvCache, Threads

if TYPE_CHECKING:
    from fewbits.engine.engine import KvCache as KvCacheName


def bench(
    path: Annotated[str, typer.Argument(help="GGUF file.")],
    prompt: Annotated[int, typer.Option(help="Tokens of the prompt.")] = 512,
    generate: Annotated[int, typer.Option(help="Tokens to decode.")] = 128,
    repetitions: Annotated[int, typer.Option(help="The median of these is told.")] = 5,
    threads: Threads = None,
    kv_cache: KvCache = "f16",
    json_output: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Measure how fast the engine runs a file, and how near that is to the speed of memory."""
    with reported():
        from fewbits.engine.speed import measure

        with TerminalProgress() as progress:
            speed = measure(
                path,
                prompt=prompt,
                generate=generate,
                repetitions=repetitions,
                threads=threads,
                kv_cache=cast("KvCacheName", kv_cache),  # checked by the engine
                progress=progress,
            )
        sys.stdout.write((json.dumps(asdict(speed)) if json_output else speed.describe()) + "\n")
