"""From a GGUF file to a server for it."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from fewbits.checkpoint.gguf_tokenizer import tokenizer_from_metadata
from fewbits.engine.engine import KvCache, open_engine
from fewbits.serving.server import Server, ServerOptions


def open_server(
    path: Path,
    options: ServerOptions,
    *,
    name: str | None = None,
    slots: int = 4,
    context: int | None = None,
    kv_cache: str = "f16",
    threads: int | None = None,
) -> Server:
    """A server for a GGUF file, listening already; `Server.run` answers.

    Args:
        path: the file.
        options: where to listen, and the limits.
        name: of the model in requests; None for the file's, without ``.gguf``.
        slots: answers that are written at a time.
        context: tokens of a prompt and its answer together, at most; None for the model's, but no more than 4096.
        kv_cache: f16, q8 or q4.
        threads: None for all cores.

    Raises:
        CheckpointError: not a GGUF file that can be read.
        EngineError: the engine doesn't know the architecture, or an option is out of range.
        MissingExtraError: the package `tokenizers` isn't installed.
        ServingError: the address can't be listened at.
    """
    engine = open_engine(
        path, threads=threads, context=context, sequences=slots, kv_cache=cast(KvCache, kv_cache)
    )
    tokenizer = tokenizer_from_metadata(engine.metadata)
    return Server(engine, tokenizer, name or path.stem, options)
