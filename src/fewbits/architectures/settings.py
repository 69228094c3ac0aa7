"""A GGUF file's settings of its architecture, checked before anything is computed with them.

Files come from anywhere: a size of 2^40 or a word in a number's place must be an error that names the key, not a loop
without end or a traceback. Only keys that the table of architectures reads are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

from fewbits.errors import ArchitectureError

_MOST = 2**31 - 1
_WIDEST_HEAD = 2**16  # tables of a head's width are made when a file is opened


def _is_count(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value: Any, most: float) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and isfinite(value)
        and abs(value) <= most
    )


class _Kind:
    """What a setting may be: in words, and as a condition."""

    def __init__(self, allowed: str, holds: Callable[[Any], bool], *, by_block: bool = False) -> None:
        self.allowed = allowed + (", or one for each block" if by_block else "")
        self._holds, self._by_block = holds, by_block

    def holds(self, value: Any) -> bool:
        """Whether a value is of this kind."""
        if self._by_block and isinstance(value, list):
            return bool(value) and all(map(self._holds, value))
        return self._holds(value)


_COUNT = _Kind(f"1 to {_MOST}", lambda value: _is_count(value, 1, _MOST))
_COUNTS = _Kind(f"1 to {_MOST}", lambda value: _is_count(value, 1, _MOST), by_block=True)
_OR_NONE = _Kind(f"0 to {_MOST}", lambda value: _is_count(value, 0, _MOST))
_WIDTH = _Kind(f"1 to {_WIDEST_HEAD}", lambda value: _is_count(value, 1, _WIDEST_HEAD))
_PATTERN = _Kind(
    f"1 to {_MOST}, or whether it slides",
    lambda v: isinstance(v, bool) or _is_count(v, 0, _MOST),
    by_block=True,
)
_FACTOR = _Kind("a number above 0, 1e9 at most", lambda value: _is_number(value, 1e9) and value >= 1e-9)
_FACTOR_OR_NONE = _Kind(
    "0, or a number from 1e-9 to 1e9", lambda value: _is_number(value, 1e9) and (value == 0 or value >= 1e-9)
)
_BASE = _Kind("a number above 1, 1e18 at most", lambda value: _is_number(value, 1e18) and value > 1)
_WORD = _Kind("a word", lambda value: isinstance(value, str))

_KINDS: Mapping[str, _Kind] = {
    "context_length": _COUNT,
    "embedding_length": _COUNT,
    "block_count": _COUNT,
    "feed_forward_length": _COUNTS,
    "expert_count": _OR_NONE,
    "expert_used_count": _OR_NONE,
    "expert_feed_forward_length": _COUNTS,
    "expert_shared_feed_forward_length": _COUNTS,
    "attention.head_count": _COUNTS,
    "attention.head_count_kv": _COUNTS,
    "attention.key_length": _WIDTH,
    "attention.sliding_window": _OR_NONE,
    "attention.sliding_window_pattern": _PATTERN,
    "attention.layer_norm_rms_epsilon": _FACTOR_OR_NONE,
    "attention.layer_norm_epsilon": _FACTOR_OR_NONE,
    "attention.scale": _FACTOR_OR_NONE,
    "embedding_scale": _FACTOR_OR_NONE,
    "residual_scale": _FACTOR_OR_NONE,
    "logit_scale": _FACTOR,
    "attn_logit_softcapping": _FACTOR_OR_NONE,
    "final_logit_softcapping": _FACTOR_OR_NONE,
    "rope.dimension_count": _WIDTH,
    "rope.freq_base": _BASE,
    "rope.freq_base_swa": _BASE,
    "rope.scale_linear": _FACTOR_OR_NONE,
    "rope.scaling.type": _WORD,
    "rope.scaling.factor": _FACTOR_OR_NONE,
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


def check_settings(values: Settings) -> None:
    """Refuse settings that nothing should be computed with; the head's width is there afterwards.

    Raises:
        ArchitectureError: a setting isn't of its kind, or the width of heads can't be told.
    """
    for key, kind in _KINDS.items():
        if key in values and not kind.holds(values[key]):
            raise ArchitectureError(
                f"{key} in this GGUF file's metadata can't be true",
                found=_shown(values[key]),
                allowed=kind.allowed,
                action="The file is damaged, or made by a converter that fewbits doesn't know.",
            )
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


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + " …"
