"""Broken model files end in a result or in FewbitsError: no other exception, no hang, no memory to speak of.

Valid files of 1 to 3 KB are damaged in 20,000 seeded ways. Each is opened, inspected, and read whole.
"""

from __future__ import annotations

import json
import os
import random
import struct
import tempfile
import tracemalloc
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from fewbits.checkpoint.gguf_constants import GGML_TYPES
from fewbits.checkpoint.source import open_checkpoint
from fewbits.errors import FewbitsError
from fewbits.inspection import inspect
from model_files import GgufFile, gguf_tensor, safetensors_bytes, small_gguf, small_tensors

CASES = 5_000  # of each of the four base files
EXTREMES = [0, 1, 2, 7, 31, 32, 255, 256, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40,
            1 << 60, (1 << 62) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]  # fmt: skip


def _block_types() -> bytes:
    """A tensor of one block of every type that ggml has, smallest first, within 3 KB."""
    kinds = sorted((t for t in GGML_TYPES.values() if t.quantized), key=lambda t: t.nbytes)
    tensors = [gguf_tensor(f"t{i}", (1, kind.block), kind.name, i) for i, kind in enumerate(kinds[:20])]
    return GgufFile({}, tensors).encode()


def _fp8() -> bytes:
    """An 8-bit model: weights with scales per block, per row and per tensor."""
    tensors = small_tensors(3)
    for name, shape, scale in (("a", (130, 3), (2, 1)), ("b", (4, 5), (4, 1)), ("c", (2, 3, 4), (1,))):
        count = len(tensors)
        tensors[f"{name}.weight"] = ("F8_E4M3", shape, bytes([count + 40] * _size(shape)))
        tensors[f"{name}.weight_scale_inv"] = ("F32", scale, struct.pack("<f", 0.5) * _size(scale))
    return safetensors_bytes(tensors)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


BASES = {
    "values.gguf": lambda: small_gguf().encode(),
    "types.gguf": _block_types,
    "plain.safetensors": lambda: safetensors_bytes(small_tensors(), {"format": "pt"}),
    "fp8.safetensors": _fp8,
}


def damaged(base: bytes, rng: random.Random) -> bytes:
    """One to four mutations, most of them in the header, where they matter."""
    data = bytearray(base)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        span = len(data) if rng.random() < 0.3 else min(len(data), 1600)
        at = rng.randrange(max(span, 1))
        match rng.randrange(8):
            case 0:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                data[at : at + 1] = bytes([data[at] ^ 1 << rng.randrange(8)]) if data else b""
            case 2:
                del data[at:]
            case 3:
                width = rng.choice((4, 8))
                value = rng.choice(EXTREMES) % (1 << 8 * width)
                data[at : at + width] = value.to_bytes(width, "little")
            case 4:
                _edit_number(data, rng)
            case 5:
                other = rng.randrange(len(data) + 1)
                data[at:at] = data[other : other + rng.randrange(64)]
            case 6:
                del data[at : at + rng.randrange(1, 32)]
            case 7:
                other = rng.randrange(len(data) + 1)
                piece = data[other : other + rng.randrange(1, 64)]
                data[at : at + len(piece)] = piece
    return bytes(data)


def _edit_number(data: bytearray, rng: random.Random) -> None:
    """Give a length, count, size or offset an extreme value: a small 64-bit number, or digits of JSON."""
    if data[:4] == b"GGUF" or data[8:9] != b"{":
        places = [i for i in range(8, min(len(data) - 8, 1600)) if data[i + 2 : i + 8] == bytes(6)]
        if places:
            data[(at := rng.choice(places)) : at + 8] = rng.choice(EXTREMES).to_bytes(8, "little")
        return
    places = [i for i in range(8, min(len(data), 3000)) if chr(data[i]).isdigit()]
    if places:
        text = rng.choice(
            [str(rng.choice(EXTREMES)), "-1", "1e9", "null", "[]", '"x"', "1.5", "true"]
        ).encode()
        at = rng.choice(places)
        data[at : at + 1] = text
        _set_header_length(data, len(text) - 1)


def _set_header_length(data: bytearray, grown: int) -> None:
    length = int.from_bytes(data[:8], "little") + grown
    if 0 <= length < 1 << 63 and struct.calcsize("<Q") <= len(data):
        data[:8] = length.to_bytes(8, "little")


def read_everything(path: Path) -> str:
    """Open, inspect, and read every tensor; how it ended."""
    with suppress(FewbitsError):
        json.loads(inspect(path).to_json())
    try:
        checkpoint = open_checkpoint(path)
    except FewbitsError:
        return "refused"
    for value in checkpoint.metadata.values():
        list(value) if hasattr(value, "raw") else value
    for tensor in checkpoint.tensors.values():
        for chunk in tensor.chunks(4096):
            assert chunk.shape[1] == tensor.matrix[1]
    return "read"


@pytest.fixture
def folder():
    """A folder in memory where there is one: a disk would be most of the time."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


@pytest.mark.parametrize("name", BASES)
def test_damaged_files(name, folder, tmp_path):
    base = BASES[name]()
    path = folder / name
    path.write_bytes(base)
    assert read_everything(path) == "read"  # which also imports the formats, once

    rng = random.Random(f"fewbits {name}")
    ends: Counter[str] = Counter()
    warnings.simplefilter("error")
    tracemalloc.start(1)
    try:
        for case in range(CASES):
            data = damaged(base, rng)
            path.write_bytes(data)
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            try:
                ends[read_everything(path)] += 1
            except Exception as error:
                kept = tmp_path / f"case-{case}-{name}"
                kept.write_bytes(data)
                raise AssertionError(f"case {case} of {name}, kept as {kept}") from error
            _, peak = tracemalloc.get_traced_memory()
            assert peak - before <= 64 * len(data) + (4 << 20), (
                f"case {case} of {name}: {peak - before} bytes"
            )
    finally:
        tracemalloc.stop()

    assert min(ends["read"], ends["refused"]) > CASES // 20  # the damage neither always nor never matters
