"""The GGUF formats under test, by name."""

from __future__ import annotations

from typing import Any

from fewbits.formats import gguf_iq4, gguf_k, gguf_legacy, gguf_mxfp4
from fewbits.formats.format import Format

FORMATS: dict[str, Format[Any]] = {
    fmt.name: fmt
    for module in (gguf_legacy, gguf_k, gguf_iq4, gguf_mxfp4)
    for fmt in vars(module).values()
    if isinstance(fmt, Format)
}
