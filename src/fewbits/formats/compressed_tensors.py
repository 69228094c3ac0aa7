"""How compressed-tensors' `quantization_config` describes the formats that this container holds.

One `Scheme` per format, as data. vLLM, SGLang and transformers read the same description. Source: the package
compressed-tensors, QuantizationArgs, QuantizationScheme and CompressionFormat.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from fewbits.formats.activation_grid import TOKEN, ActivationGrid, float_grid, integer_grid
from fewbits.formats.integer import GROUPS

METHOD = "compressed-tensors"
PACKED = "pack-quantized"
# A tensor's rows and columns, int64 [2], which pack-quantized stores beside the format's own parts.
SHAPE_PART = "weight_shape"

# Of E4M3.
_MANTISSA = 3
# 8-bit activations, each token with a scale of its own, chosen when it is seen.
_TOKEN: Mapping[str, Any] = {
    "num_bits": 8, "symmetric": True, "strategy": "token", "group_size": None, "dynamic": True
}  # fmt: skip


@dataclass(frozen=True)
class Scheme:
    """One format in this container.

    Attributes:
        format: fewbits' name.
        layout: compressed-tensors' name for how the arrays lie.
        weights: what its config says of the weights.
        inputs: what it says of the activations; None where they stay as they are.
        shape_part: whether `SHAPE_PART` lies beside the format's arrays.
    """

    format: str
    layout: str
    weights: Mapping[str, Any]
    inputs: Mapping[str, Any] | None = None
    shape_part: bool = False

    @property
    def activation_grid(self) -> ActivationGrid | None:
        """How inputs are rounded; None if they aren't."""
        if self.inputs is None:
            return None
        if self.inputs["type"] == "int":
            return integer_grid(self.inputs["num_bits"], TOKEN)
        return float_grid(_MANTISSA, TOKEN)

    @property
    def packs_zero_points(self) -> bool:
        """Whether zero points are packed down the rows."""
        return self.layout == PACKED and not self.weights["symmetric"]


def _weights(kind: str, bits: int, strategy: str, group: int | None = None, **rest: Any) -> dict[str, Any]:
    described = {"num_bits": bits, "type": kind, "symmetric": True, "strategy": strategy, "group_size": group}
    return {**described, "dynamic": False, **rest}


def _packed(width: int, group: int | None, *, symmetric: bool) -> Scheme:
    name = f"INT{width}_{f'G{group}' if group else 'CHANNEL'}{'_SYM' if symmetric else ''}"
    weights = _weights("int", width, "group" if group else "channel", group, symmetric=symmetric)
    return Scheme(name, PACKED, weights, shape_part=True)


_PACKED_SCHEMES = [
    _packed(width, group, symmetric=symmetric)
    for width in range(8, 1, -1)
    for group in (*GROUPS, None)
    for symmetric in (False, True)
    if width < 8 or group  # 8 bits per channel lie as int-quantized has them
]
_OTHER_SCHEMES = [
    Scheme("INT8_CHANNEL_SYM", "int-quantized", _weights("int", 8, "channel"), {**_TOKEN, "type": "int"}),
    Scheme(
        "FP8_E4M3_CHANNEL", "float-quantized", _weights("float", 8, "channel"), {**_TOKEN, "type": "float"}
    ),
    Scheme(
        "NVFP4",
        "nvfp4-pack-quantized",
        _weights("float", 4, "tensor_group", 16),
    ),
    Scheme(
        "MXFP4_PACKED",
        "mxfp4-pack-quantized",
        _weights("float", 4, "group", 32),
    ),
]
SCHEMES: Mapping[str, Scheme] = {s.format: s for s in (*_OTHER_SCHEMES, *_PACKED_SCHEMES)}

# Weight-only formats that vLLM, SGLang (both by Marlin's kernels) and transformers compute in any mixture.
EVERYWHERE = tuple(f"INT{width}_G{group}_SYM" for width in (8, 4) for group in (32, 64, 128))
# What vLLM computes besides: Marlin has zero points at 4 bits.
_VLLM = (*(f"INT4_G{group}" for group in (32, 64, 128)), *(scheme.format for scheme in _OTHER_SCHEMES))


def rare(names: Iterable[str]) -> list[str]:
    """Those of these formats that some vLLM or SGLang has no kernel for; transformers unpacks them."""
    return sorted({name for name in names if name in SCHEMES} - {*EVERYWHERE, *_VLLM})


# What decides the numbers; other keys say how a scale was found, or are empty.
_DECISIVE = ("num_bits", "type", "symmetric", "strategy", "group_size")
_MUST_BE_EMPTY = ("actorder", "block_structure", "dynamic")


def scheme_described_by(weights: object, layout: object) -> Scheme | None:
    """The scheme that a group of a `quantization_config` means, or None if it is none of these."""
    if not isinstance(weights, Mapping) or any(weights.get(key) for key in _MUST_BE_EMPTY):
        return None
    return _by_description().get((layout, _decisive(weights)))


@cache
def _by_description() -> dict[tuple[object, tuple[object, ...]], Scheme]:
    return {(s.layout, _decisive(s.weights)): s for s in SCHEMES.values()}


def _decisive(weights: Mapping[str, Any]) -> tuple[object, ...]:
    """The decisive values, with those filled in that the package infers."""
    group = weights.get("group_size")
    inferred = "tensor" if group is None else "channel" if group == -1 else "group"
    filled = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": inferred, **weights}
    filled["strategy"] = filled["strategy"] or inferred
    if group == -1:
        filled["group_size"] = None
    return tuple(str(filled.get(key)) for key in _DECISIVE)
