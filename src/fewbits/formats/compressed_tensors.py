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

# Of E4M3 and E2M1, by bits: those of the mantissa, and the smallest step as a share of the largest number, where it
# counts: one outlier of a block takes E2M1's other numbers to zero.
_FLOATS = {8: (3, 0.0), 4: (1, 0.5 / 6)}
# One number each, for all inputs of a map: what they are divided by, or what scales of groups are multiplied with.
INPUT_SCALE, INPUT_GLOBAL_SCALE = "input_scale", "input_global_scale"
# 8-bit activations: each token, or 128 numbers of it, with a scale of its own, chosen when it is seen, or one scale for
# all in the file.
_TOKEN: Mapping[str, Any] = {
    "num_bits": 8, "symmetric": True, "strategy": "token", "group_size": None, "dynamic": True
}  # fmt: skip
_GROUP: Mapping[str, Any] = {**_TOKEN, "strategy": "group", "group_size": 128}
_STATIC: Mapping[str, Any] = {**_TOKEN, "strategy": "tensor", "dynamic": False}
# 4-bit activations in groups; NVFP4's scales are multiplied with one for all in the file before they are rounded.
_NVFP4: Mapping[str, Any] = {
    "num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16,
    "dynamic": "local", "scale_dtype": "torch.float8_e4m3fn",
}  # fmt: skip
_MXFP4: Mapping[str, Any] = {
    "num_bits": 4, "type": "float", "symmetric": True, "strategy": "group", "group_size": 32,
    "dynamic": True, "scale_dtype": "torch.uint8",
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
        block = self.inputs["group_size"] or TOKEN
        if self.inputs["type"] == "int":
            return integer_grid(self.inputs["num_bits"], block)
        mantissa, least_step = _FLOATS[self.inputs["num_bits"]]
        return float_grid(mantissa, block, least_step)

    @property
    def input_part(self) -> str:
        """The array that holds what calibration found for the inputs; "" if there is none."""
        if self.inputs is None or self.inputs["dynamic"] is True:
            return ""
        return INPUT_GLOBAL_SCALE if self.inputs["dynamic"] == "local" else INPUT_SCALE

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
        "FP8_E4M3_BLOCK",
        "float-quantized",
        _weights("float", 8, "block", block_structure=[128, 128]),
        {**_GROUP, "type": "float"},
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
    Scheme(
        "INT8_CHANNEL_SYM_STATIC", "int-quantized", _weights("int", 8, "channel"), {**_STATIC, "type": "int"}
    ),
    *(
        Scheme(
            f"FP8_E4M3_{scope.upper()}_STATIC",
            "float-quantized",
            _weights("float", 8, scope),
            {**_STATIC, "type": "float"},
        )
        for scope in ("channel", "tensor")
    ),
    Scheme("NVFP4_A4", "nvfp4-pack-quantized", _weights("float", 4, "tensor_group", 16), _NVFP4),
    Scheme("MXFP4_PACKED_A4", "mxfp4-pack-quantized", _weights("float", 4, "group", 32), _MXFP4),
    *(
        Scheme(
            f"INT4_{f'G{group}' if group else 'CHANNEL'}_SYM_A8",
            "int-quantized",
            _weights("int", 4, "group" if group else "channel", group),
            {**_TOKEN, "type": "int"},
        )
        for group in (128, 64, 32, None)
    ),
]
SCHEMES: Mapping[str, Scheme] = {s.format: s for s in (*_OTHER_SCHEMES, *_PACKED_SCHEMES)}

# Weight-only formats that vLLM, SGLang (both by Marlin's kernels) and transformers compute in any mixture.
EVERYWHERE = tuple(f"INT{width}_G{group}_SYM" for width in (8, 4) for group in (32, 64, 128))
# What vLLM computes besides: Marlin has zero points at 4 bits. Integers of 4 and 8 bits it multiplies on Arm CPUs only,
# and MXFP4 with MXFP4 not everywhere.
_VLLM = (
    *(f"INT4_G{group}" for group in (32, 64, 128)),
    *(s.format for s in _OTHER_SCHEMES if s.format != "MXFP4_PACKED_A4" and not s.format.startswith("INT4")),
)


def rare(names: Iterable[str]) -> list[str]:
    """Those of these formats that some vLLM or SGLang has no kernel for; transformers unpacks them."""
    return sorted({name for name in names if name in SCHEMES} - {*EVERYWHERE, *_VLLM})


# What decides the numbers; other keys say how a scale was found, or are empty.
_DECISIVE = ("num_bits", "type", "symmetric", "strategy", "group_size", "block_structure")
_MUST_BE_EMPTY = ("actorder", "dynamic")


def scheme_described_by(weights: object, layout: object, inputs: object = None) -> Scheme | None:
    """The scheme that a group of a `quantization_config` means, or None if it is none of these.

    Where inputs are described in a way that isn't known, it is one with these weights.
    """
    if not isinstance(weights, Mapping) or any(weights.get(key) for key in _MUST_BE_EMPTY):
        return None
    known = _by_description().get((layout, _decisive(weights)), {})
    return known.get(_decisive_of_inputs(inputs)) or next(iter(known.values()), None)


@cache
def _by_description() -> dict[tuple[object, tuple[object, ...]], dict[tuple[object, ...], Scheme]]:
    found: dict[tuple[object, tuple[object, ...]], dict[tuple[object, ...], Scheme]] = {}
    for scheme in SCHEMES.values():
        same = found.setdefault((scheme.layout, _decisive(scheme.weights)), {})
        same[_decisive_of_inputs(scheme.inputs)] = scheme
    return found


def _decisive_of_inputs(inputs: object) -> tuple[object, ...]:
    if not isinstance(inputs, Mapping):
        return ()
    return (*_decisive(inputs), str(inputs.get("dynamic")))


def _decisive(weights: Mapping[str, Any]) -> tuple[object, ...]:
    """The decisive values, with those filled in that the package infers."""
    group = weights.get("group_size")
    inferred = "tensor" if group is None else "channel" if group == -1 else "group"
    filled = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": inferred, **weights}
    filled["strategy"] = filled["strategy"] or inferred
    if group == -1:
        filled["group_size"] = None
    return tuple(str(filled.get(key)) for key in _DECISIVE)
