"""A GGUF file's settings of its architecture, checked before anything is computed with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fewbits.checkpoint.metadata_kinds import (
    SWITCH,
    WORD,
    Kind,
    by_block,
    either,
    listed,
    number,
    require,
    whole,
)
from fewbits.errors import ArchitectureError

_MOST = 2**31 - 1
_COUNT, _OR_NONE = whole(1, _MOST), whole(0, _MOST)
_WIDTH = whole(1, 2**16)  # of a head: tables of that size are made when a file is opened
_FACTOR = number(1e-9, 1e9)
_OFF_OR_FACTOR = number(1e-9, 1e9, or_zero=True)
_BASE = number(1.001, 1e18)

# Keys that the table of architectures reads.
_KINDS: Mapping[str, Kind] = {
    "context_length": _COUNT,
    "embedding_length": _COUNT,
    "block_count": _COUNT,
    "feed_forward_length": by_block(_OR_NONE),
    "expert_count": _OR_NONE,
    "expert_used_count": _OR_NONE,
    "expert_feed_forward_length": by_block(_OR_NONE),
    "expert_shared_feed_forward_length": by_block(_OR_NONE),
    "attention.head_count": by_block(_COUNT),
    "attention.head_count_kv": by_block(_COUNT),
    "attention.key_length": _WIDTH,
    "attention.sliding_window": _OR_NONE,
    "attention.sliding_window_pattern": either(_COUNT, listed(either(SWITCH, _OR_NONE))),
    "attention.layer_norm_rms_epsilon": _OFF_OR_FACTOR,
    "attention.layer_norm_epsilon": _OFF_OR_FACTOR,
    "attention.scale": _OFF_OR_FACTOR,
    "embedding_scale": _OFF_OR_FACTOR,
    "residual_scale": _OFF_OR_FACTOR,
    "logit_scale": _FACTOR,
    "attn_logit_softcapping": _OFF_OR_FACTOR,
    "final_logit_softcapping": _OFF_OR_FACTOR,
    "rope.dimension_count": _WIDTH,
    "rope.freq_base": _BASE,
    "rope.freq_base_swa": _BASE,
    "rope.scale_linear": _OFF_OR_FACTOR,
    "rope.scaling.type": WORD,
    "rope.scaling.factor": _OFF_OR_FACTOR,
    "rope.scaling.original_context_length": _COUNT,
    "rope.scaling.attn_factor": _FACTOR,
    "rope.scaling.yarn_beta_fast": _FACTOR,
    "rope.scaling.yarn_beta_slow": _FACTOR,
}


class Settings(dict[str, Any]):
    """A GGUF file's metadata without the architecture's prefix; what is asked for and isn't there is refused."""

    def __missing__(self, key: str) -> Any:
        raise ArchitectureError(
            "this GGUF file's metadata lacks what its architecture needs", found=f"no {key}"
        )


def read_settings(architecture: str, metadata: Mapping[str, Any]) -> Settings:
    """The settings of an architecture as the file says them, arrays as lists."""
    prefix = f"{architecture}."
    return Settings(
        (k[len(prefix) :], _listed(value)) for k, value in metadata.items() if k.startswith(prefix)
    )


def check_settings(architecture: str, values: Settings) -> None:
    """Refuse settings that nothing should be computed with; the head's width is there afterwards.

    Raises:
        ArchitectureError: a setting isn't of its kind, or the width of heads can't be told.
    """
    require(values, _KINDS, ArchitectureError, prefix=f"{architecture}.")
    hidden, heads = values["embedding_length"], first(values["attention.head_count"])
    if not _WIDTH.holds(values.setdefault("attention.key_length", hidden // heads)):
        raise ArchitectureError(
            "heads of this width can't be",
            found=f"{hidden} numbers for {heads} heads",
            allowed=f"{_WIDTH.allowed} for each",
        )


def first(value: Any) -> Any:
    """A number, or the first of one per block."""
    return value[0] if isinstance(value, list) else value


def _listed(value: Any) -> Any:
    """Arrays of the reader as lists."""
    return value.tolist() if hasattr(value, "tolist") else value
