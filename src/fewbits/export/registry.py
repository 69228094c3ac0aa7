"""Exporters by name. Adding a container: one module with a class, and one line in `_EXPORTERS`."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from fewbits.checkpoint.checkpoint import Checkpoint
from fewbits.errors import FormatError
from fewbits.export.converters import converter_names, find_converter
from fewbits.export.exporter import Exporter

# name -> module and class, imported on first use
_EXPORTERS = {
    "gguf": ("fewbits.export.gguf.exporter", "GgufExporter"),
    "compressed-tensors": ("fewbits.export.compressed_tensors.exporter", "CompressedTensorsExporter"),
    "gptq": ("fewbits.export.gptq", "GptqExporter"),
    "awq": ("fewbits.export.awq", "AwqExporter"),
    "mlx": ("fewbits.export.mlx", "MlxExporter"),
    "bitsandbytes": ("fewbits.export.bitsandbytes", "BitsandbytesExporter"),
    "modelopt": ("fewbits.export.modelopt", "ModelOptExporter"),
    "onnx": ("fewbits.export.onnx.exporter", "OnnxExporter"),
}
# Of the names of directories that converters read.
DIRECTORY_SUFFIX = "-weights"
# What converters read, where it can be made without the converter's packages: converted elsewhere by `fewbits export`.
_DIRECTORIES = {
    "openvino-weights": ("fewbits.export.openvino.directory", "OpenvinoDirectory"),
    "executorch-weights": ("fewbits.export.executorch.weights", "ExecutorchWeights"),
    "coreml-weights": ("fewbits.export.coreml.converter", "CoremlDirectory"),
    "litert-weights": ("fewbits.export.litert.converter", "LitertDirectory"),
}


def exporter_names() -> list[str]:
    """Names of all containers that fewbits writes."""
    return list(_EXPORTERS)


def get_exporter(name: str) -> Exporter:
    """The exporter called `name`, or the one that writes what the converter of that name reads; upper or lower case.

    Raises:
        FormatError: no such container; the message lists those there are.
    """
    if converter := find_converter(name):
        return converter.intermediate
    if name.lower() not in (*_EXPORTERS, *_DIRECTORIES):
        allowed = ", ".join((*_EXPORTERS, *converter_names()))
        raise FormatError("unknown container", found=repr(name), allowed=allowed)
    return _make(name.lower())


def container_of(stored: Checkpoint) -> str | None:
    """Which container an artifact is, its tensors as they lie in the files; None if it is none of ours."""
    return next((name for name in _EXPORTERS if _make(name).recognises(stored)), None)


@cache
def _make(name: str) -> Exporter:
    module, class_name = (_EXPORTERS | _DIRECTORIES)[name]
    exporter: Exporter = getattr(import_module(module), class_name)()
    return exporter
