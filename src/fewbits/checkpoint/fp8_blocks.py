"""Reading FP8 in blocks of 128 x 128 as DeepSeek, Qwen and others publish it (quant_method ``fp8``).

X.weight, X.weight_scale_inv   →   X.weight in FP8_E4M3_BLOCK

The scale is what codes are multiplied by, whatever its name says. Descriptions of other FP8 are left to `fp8`, which
reads numbers only. Source: transformers, utils/quantization_config.py, FineGrainedFP8Config; DeepSeek-V3's
README_WEIGHTS.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fewbits.checkpoint.checkpoint import LazyTensor, StoredTensor
from fewbits.checkpoint.packed import WEIGHT, PackedReader
from fewbits.formats import get_format

_FORMAT = "FP8_E4M3_BLOCK"
_PUBLISHED, _SCALE = ".weight_scale_inv", "weight_scale"


class Fp8BlockReader(PackedReader):
    """Its modules: all that have a scale."""

    markers = (_SCALE,)
    parts = (_SCALE, WEIGHT)
    ignored = re.compile(r".*\.(activation_scale(_inv)?|[kqv]_scale)")

    def arrays(self, tensors: Mapping[str, LazyTensor]) -> Mapping[str, LazyTensor]:
        """Scales under the name that the format has for them."""
        return {
            f"{name.removesuffix(_PUBLISHED)}.{_SCALE}" if name.endswith(_PUBLISHED) else name: tensor
            for name, tensor in tensors.items()
        }

    def format_of(self, module: str, parts: Mapping[str, StoredTensor]) -> tuple[str, tuple[int, int]] | None:
        """See `PackedReader.format_of`."""
        del module
        shape = parts[WEIGHT].shape if WEIGHT in parts else ()
        if len(shape) != 2 or not get_format(_FORMAT).divides(0, shape[1]):
            return None
        return _FORMAT, shape


def reader_for(config: Mapping[str, Any], quantization: Mapping[str, Any]) -> PackedReader | None:
    """The reader for a directory described so; None for other blocks, and for activations rounded otherwise."""
    del config
    block = quantization.get("weight_block_size")
    alike = (
        quantization.get("activation_scheme", "dynamic") == "dynamic"
        and str(quantization.get("fmt", "e4m3")) == "e4m3"
        and quantization.get("scale_fmt") in (None, "float")  # ue8m0: activations have powers of two
    )
    return Fp8BlockReader() if alike and block in ([128, 128], (128, 128)) else None
