"""The ``quantization_config`` of config.json, by which runtimes know what each module's weight is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fewbits.export.exporter import OutputTensor
from fewbits.export.kv_cache import kv_cache_scheme, refuse_cache_alone
from fewbits.formats.compressed_tensors import METHOD, SCHEMES, Scheme

_WEIGHT = ".weight"
_HEAD = "lm_head"
_MIXED = "mixed-precision"


def quantization_config(tensors: Sequence[OutputTensor], formats: Mapping[str, str]) -> dict[str, Any] | None:
    """What config.json says of the formats; None if nothing is quantized.

    With one format, its group is every linear layer but the ignored ones; with several, groups list their modules
    by name. Modules that stay in floating point are ignored by name, the head always.
    """
    modules: dict[str, list[str]] = {}
    ignored = [_HEAD]
    for tensor in tensors:
        name = tensor.name.removesuffix(_WEIGHT)
        if formats[tensor.name] in SCHEMES:
            modules.setdefault(formats[tensor.name], []).append(name)
        elif len(tensor.shape) == 2 and tensor.name.endswith(_WEIGHT) and tensor.role != "embedding":
            ignored.append(name)
    if not modules:
        refuse_cache_alone(tensors)
        return None
    schemes = [SCHEMES[name] for name in modules]
    layouts = list(dict.fromkeys(scheme.layout for scheme in schemes))
    targets = [["Linear"]] if len(modules) == 1 else list(modules.values())
    groups = {f"group_{i}": _group(*pair) for i, pair in enumerate(zip(schemes, targets, strict=True))}
    return {
        "config_groups": groups,
        **({"dequantize": True} if _needs_unpacking(schemes) else {}),
        "format": layouts[0] if len(layouts) == 1 else _MIXED,
        "global_compression_ratio": None,
        "ignore": list(dict.fromkeys(ignored)),
        "kv_cache_scheme": kv_cache_scheme(tensors),
        "quant_method": METHOD,
        "quantization_status": "compressed",
    }


def _needs_unpacking(schemes: Sequence[Scheme]) -> bool:
    """Whether transformers must be told to unpack while it loads, which other runtimes don't look at.

    Otherwise it makes a packed model first, and compressed-tensors (0.20) gives that zero points that aren't packed
    down the rows, so that those of the file don't fit. Unpacking while loading knows one scheme only.
    """
    return len(schemes) == 1 and schemes[0].packs_zero_points


def _group(scheme: Scheme, targets: Sequence[str]) -> dict[str, Any]:
    return {
        "format": scheme.layout,
        "input_activations": None if scheme.inputs is None else dict(scheme.inputs),
        "output_activations": None,
        "targets": list(targets),
        "weights": dict(scheme.weights),
    }
