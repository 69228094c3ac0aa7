"""A model cut down to its first transformer block, which llama.cpp can load: for dry runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fewbits.checkpoint.gguf_cursor import GgufArray
from fewbits.export.exporter import OutputTensor
from fewbits.export.gguf.container import Typed, plain

_COUNT = ".block_count"


def first_block(
    tensors: list[OutputTensor], metadata: Mapping[str, Any]
) -> tuple[list[OutputTensor], dict[str, Any]]:
    """Tensors outside blocks and of block 0, with metadata to match.

    Settings with a value per block (head counts of some architectures) keep the first.
    """
    architecture = plain(metadata.get("general.architecture", ""))
    key = f"{architecture}{_COUNT}"
    blocks = int(plain(metadata.get(key, 1)))
    cut = {
        name: _first(value) if name.startswith(f"{architecture}.") and _length(value) == blocks else value
        for name, value in metadata.items()
    }
    # Blocks that predict further tokens are counted among the blocks, so none may be left.
    for name, count in ((key, 1), (f"{architecture}.nextn_predict_layers", 0)):
        if name in cut:
            cut[name] = replace(cut[name], value=count) if isinstance(cut[name], Typed) else count
    return [t for t in tensors if t.block in (None, 0)], cut


def _items(value: Any) -> Any:
    return value.value if isinstance(value, Typed) else value


def _length(value: Any) -> int:
    items = _items(value)
    return len(items) if isinstance(items, (list, tuple, GgufArray)) else -1


def _first(value: Any) -> Any:
    first = list(_items(value))[:1]
    return replace(value, value=first) if isinstance(value, Typed) else first
