"""A converter without a runtime: one .npy file of float32 numbers for each tensor, written with NumPy."""

from pathlib import Path

import numpy as np

from fewbits.checkpoint.checkpoint import LazyTensor
from fewbits.checkpoint.packed import PackedTensor
from fewbits.errors import ArchitectureError, ExportError
from fewbits.export.compressed_tensors.exporter import CompressedTensorsExporter
from fewbits.export.converter import Converter


class NpyDirectory(CompressedTensorsExporter):
    name = "npy"
    formats = ("INT8_G32_SYM", "INT4_G64_SYM", "INT4_G32_SYM")
    planned = ()
    default_format = "INT4_G64_SYM"


class NpyTensor(LazyTensor):
    def __init__(self, path: Path, name: str) -> None:
        self.name, self.dtype = name, "F32"
        self._array = np.load(path, mmap_mode="r")
        self.shape = self._array.shape

    def rows(self, start, stop):
        return np.array(self._array.reshape(self.matrix)[start:stop], np.float32)


class NpyConverter(Converter):
    name = "npy"
    intermediate = NpyDirectory()
    extra = "npy"
    packages = ("numpy", "json.decoder")
    largest = 10_000
    fails = ""

    def check(self, checkpoint):
        if any(max(t.shape) > self.largest for t in checkpoint.tensors.values()):
            raise ArchitectureError("npy has no place for so many rows", action="Take a smaller model")

    def convert(self, quantized, output, progress):
        progress.message(f"{len(quantized.tensors)} tensors")
        (output / "weights").mkdir()
        for name, tensor in quantized.tensors.items():
            if name == self.fails:
                raise ExportError(f"the library can't write {name}")
            numbers = tensor.read()
            if isinstance(tensor, PackedTensor):
                numbers = self.changed(numbers, name)
            np.save(output / "weights" / f"{name}.npy", numbers)

    def changed(self, numbers, name):
        assert name.endswith(".weight")
        return numbers

    def weights(self, output):
        found = sorted((output / "weights").glob("*.npy"))
        return {p.name.removesuffix(".npy"): NpyTensor(p, p.name.removesuffix(".npy")) for p in found}
