"""Reading what bitsandbytes and fewbits packed for transformers and QLoRA.

X.weight, X.weight.absmax, X.weight.quant_map, X.weight.quant_state.bitsandbytes__nf4   →   X.weight in NF4
X.weight, X.SCB, X.weight_format                                                        →   X.weight in BNB_INT8
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fewbits.checkpoint.checkpoint import StoredTensor
from fewbits.checkpoint.packed import WEIGHT, PackedReader

ABSMAX, STATE = "weight.absmax", "weight.quant_state.bitsandbytes__nf4"
SCB, ROW_FORMAT = "SCB", "weight_format"
MARKERS = (ABSMAX, SCB)
PARTS = (ABSMAX, "weight.quant_map", STATE, SCB, ROW_FORMAT, WEIGHT)
BLOCK = 64


class BitsandbytesReader(PackedReader):
    """bitsandbytes' modules: NF4 without double quantization, and 8-bit integers."""

    markers = MARKERS
    parts = PARTS

    def format_of(self, module: str, parts: Mapping[str, StoredTensor]) -> tuple[str, tuple[int, int]] | None:
        """See `PackedReader.format_of`."""
        del module
        if SCB in parts:
            shape = parts[WEIGHT].shape if WEIGHT in parts else ()
            return ("BNB_INT8", (shape[0], shape[1])) if len(shape) == 2 else None
        state = _state(parts.get(STATE))
        shape = tuple(state.get("shape", ()))
        known = (
            state.get("quant_type") == "nf4"
            and state.get("blocksize") == BLOCK
            and "nested_blocksize" not in state
        )
        if (
            not known
            or len(shape) != 2
            or not all(isinstance(n, int) and n > 0 for n in shape)
            or shape[1] % BLOCK
        ):
            return None
        return "NF4", (shape[0], shape[1])


def reader_for(config: Mapping[str, Any], quantization: Mapping[str, Any]) -> PackedReader | None:
    """The reader for a directory described so: the arrays themselves say what they are."""
    del config, quantization
    return BitsandbytesReader()


def _state(stored: StoredTensor | None) -> dict[str, Any]:
    """A weight's description; {} if it is none."""
    if stored is None or stored.dtype != "U8" or len(stored.shape) != 1:
        return {}
    try:
        state = json.loads(stored.raw(0, 1).tobytes())
    except ValueError:
        return {}
    return state if isinstance(state, dict) else {}
