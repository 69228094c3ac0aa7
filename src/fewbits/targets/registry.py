"""Targets by container. Adding one: a module with a `TARGET`, and its line in `_MODULES`."""

from __future__ import annotations

from importlib import import_module

from fewbits.targets.target import Target

# container -> module
_MODULES = {
    "gguf": "fewbits.targets.gguf",
    "compressed-tensors": "fewbits.targets.compressed_tensors",
    "gptq": "fewbits.targets.gptq",
    "awq": "fewbits.targets.awq",
    "modelopt": "fewbits.targets.modelopt",
    "bitsandbytes": "fewbits.targets.bitsandbytes",
    "mlx": "fewbits.targets.mlx",
    "onnx": "fewbits.targets.onnx",
    "openvino": "fewbits.targets.openvino",
    "executorch": "fewbits.targets.executorch",
    "litert": "fewbits.targets.litert",
    "coreml": "fewbits.targets.coreml",
}


def target_names() -> list[str]:
    """Containers that facts are known of."""
    return list(_MODULES)


def containers_on(hardware: str) -> list[str]:
    """Containers of which this hardware computes something."""
    return [name for name in _MODULES if hardware in target_of(name).hardware]


def target_of(container: str) -> Target:
    """The facts about a container; none but its name where there are none."""
    if container not in _MODULES:
        return Target(container, container, (), ())
    target: Target = import_module(_MODULES[container]).TARGET
    return target
