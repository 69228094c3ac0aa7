"""fewbits serve."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from fewbits.cli.failure import reported
from fewbits.cli.sampling_options import Context, KvCache, Threads
from fewbits.errors import MissingExtraError, ServingError


def serve(
    path: Annotated[Path, typer.Argument(help="GGUF file.")],
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any that is free.")] = 8080,
    api_key: Annotated[
        str | None,
        typer.Option(
            help="Ask for it in every request; others see it in the list of processes, not so in "
            "FEWBITS_API_KEY.",
            envvar="FEWBITS_API_KEY",
            show_envvar=False,
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the model in requests. Default: the file's.")] = None,
    slots: Annotated[int, typer.Option(help="Answers that are written at a time.")] = 4,
    context: Context = None,
    kv_cache: KvCache = "f16",
    queue: Annotated[int, typer.Option(help="Requests that may wait; more are told to come back.")] = 128,
    max_body: Annotated[str, typer.Option(help="Size of a request at most.")] = "4MiB",
    step_tokens: Annotated[int, typer.Option(help="Tokens computed together at most.")] = 256,
    threads: Threads = None,
) -> None:
    """Answer OpenAI's clients: chat completions and completions, streamed or not, many at a time."""
    with reported():
        for package in ("starlette", "uvicorn", "tokenizers"):
            if find_spec(package) is None:
                raise MissingExtraError(package, "serve", "Serving")
        _check("--port", port, 0, 65535)
        _check("--queue", queue, 0, 1 << 20)
        for option, value in (("--slots", slots), ("--step-tokens", step_tokens)):
            _check(option, value, 1, 1 << 16)
        if api_key is not None and not api_key.strip():
            raise ServingError(
                "the API key is empty", action="Give one, or leave out --api-key and FEWBITS_API_KEY"
            )
        from fewbits.operating_system import share_free_memory
        from fewbits.planning.byte_size import parse_bytes
        from fewbits.serving.open_server import open_server
        from fewbits.serving.server import ServerOptions, is_loopback

        options = ServerOptions(
            host=host,
            port=port,
            api_key=api_key,
            queue_limit=queue,
            body_limit=parse_bytes(max_body),
            step_tokens=step_tokens,
        )
        share_free_memory()
        server = open_server(
            path, options, name=name, slots=slots, context=context, kv_cache=kv_cache, threads=threads
        )
        if api_key is None and not is_loopback(host):
            sys.stderr.write(
                f"fewbits: whoever reaches {host} can use this server; --api-key asks for a key\n"
            )
        sys.stderr.write(f"{server.model} at {server.url}/v1, {slots} slots of {server.context} tokens\n")
        sys.stderr.flush()
        server.run()


def _check(option: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ServingError(f"{option} is out of range", found=value, allowed=f"{least} to {most}")
