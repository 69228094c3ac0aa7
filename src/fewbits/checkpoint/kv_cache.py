"""What a Hugging Face directory says of the key-value cache: its type, and scales for the keys and values of layers.

    config.json     "quantization_config": {"kv_cache_scheme": {"num_bits": 8, "type": "float", "dynamic": false, …}}
    safetensors     ATTENTION.k_scale, ATTENTION.v_scale (compressed-tensors), or below its projections (ModelOpt)

compressed-tensors has a number, [1], for all heads or one for each, [H, 1, 1]; ModelOpt a number, [].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fewbits.checkpoint.checkpoint import Checkpoint, Floats
from fewbits.checkpoint.hf_directory import quantization_of, read_hf_directory

# Of names of arrays, and what is scaled.
KEY_SCALE, VALUE_SCALE = ".k_scale", ".v_scale"
# What the config says of a cache that fewbits knows -> name of the type of its codes.
_TYPES = {("float", 8): "float8_e4m3fn", ("int", 8): "int8"}


@dataclass(frozen=True)
class StoredKvCache:
    """What a directory says of its key-value cache.

    Attributes:
        described: whether the config asks for a quantized one.
        dtype: of its codes, as torch calls it; empty where it isn't one that fewbits knows.
        keys: module -> scales of its keys, float32 of any shape.
        values: likewise.
    """

    described: bool = False
    dtype: str = ""
    keys: Mapping[str, Floats] = field(default_factory=dict)
    values: Mapping[str, Floats] = field(default_factory=dict)


def stored_kv_cache(checkpoint: Checkpoint) -> StoredKvCache:
    """What the files of a checkpoint say; nothing for all but safetensors files, which have no place for it.

    Raises:
        CheckpointError: the files can't be read any more.
    """
    path = checkpoint.path
    if checkpoint.container != "safetensors" or not path.exists():
        return StoredKvCache()
    stored = read_hf_directory(path) if path.is_dir() else read_hf_directory(path.parent, path)
    scheme = quantization_of(stored.config).get("kv_cache_scheme")
    dtype = ""
    if isinstance(scheme, Mapping) and not scheme.get("dynamic"):
        kind = (str(scheme.get("type")), int(scheme.get("num_bits") or 0))
        known = scheme.get("symmetric", True) and scheme.get("strategy") in (None, "tensor", "attn_head")
        dtype = _TYPES.get(kind, "") if known else ""
    keys, values = (
        {n.removesuffix(end): t.read() for n, t in stored.tensors.items() if n.endswith(end)}
        for end in (KEY_SCALE, VALUE_SCALE)
    )
    return StoredKvCache(bool(scheme), dtype, keys, values)
