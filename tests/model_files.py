"""Tiny valid model files, built byte by byte so that tests can break any one of them."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from fewbits.checkpoint.dtypes import STORAGE
from fewbits.checkpoint.gguf_constants import GGML_TYPES, SCALAR_CODES, ValueType


def gguf_string(text: str | bytes) -> bytes:
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def gguf_value(kind: ValueType, value: Any, element: ValueType | None = None) -> bytes:
    """A metadata value with its type in front."""
    return struct.pack("<I", kind) + _payload(kind, value, element)


def _payload(kind: ValueType, value: Any, element: ValueType | None) -> bytes:
    if kind is ValueType.STRING:
        return gguf_string(value)
    if kind is ValueType.ARRAY:
        assert element is not None
        items = b"".join(_payload(element, v, None) for v in value)
        return struct.pack("<IQ", element, len(value)) + items
    return struct.pack("<" + SCALAR_CODES[kind], value)


@dataclass
class GgufTensor:
    """A tensor to be written; every field can be set to a lie."""

    name: str | bytes
    shape: tuple[int, ...]  # NumPy's order
    type_name: str
    data: bytes
    type_number: int | None = None
    offset: int | None = None
    dimensions: int | None = None


@dataclass
class GgufFile:
    """A GGUF file to be written; every field can be set to a lie."""

    metadata: Mapping[str, bytes] = field(default_factory=dict)  # key -> type and value
    tensors: Sequence[GgufTensor] = ()
    magic: bytes = b"GGUF"
    version: int = 3
    tensor_count: int | None = None
    value_count: int | None = None
    alignment: int = 32
    byte_order: str = "<"

    def header(self) -> tuple[bytes, list[int]]:
        count = len(self.tensors) if self.tensor_count is None else self.tensor_count
        values = len(self.metadata) if self.value_count is None else self.value_count
        out = self.magic + struct.pack(self.byte_order + "IQQ", self.version, count, values)
        for key, value in self.metadata.items():
            out += gguf_string(key) + value
        offsets, offset = [], 0
        for tensor in self.tensors:
            offsets.append(offset if tensor.offset is None else tensor.offset)
            dimensions = len(tensor.shape) if tensor.dimensions is None else tensor.dimensions
            number = GGML_TYPES[tensor.type_name].number if tensor.type_number is None else tensor.type_number
            out += gguf_string(tensor.name) + struct.pack("<I", dimensions)
            out += struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape[::-1])
            out += struct.pack("<IQ", number, offsets[-1])
            offset += -(-len(tensor.data) // self.alignment) * self.alignment
        return out, offsets

    def encode(self) -> bytes:
        out, _ = self.header()
        out += b"\0" * (-len(out) % self.alignment)
        for tensor in self.tensors:
            out += tensor.data + b"\0" * (-len(tensor.data) % self.alignment)
        return out

    def write(self, path: Path) -> Path:
        path.write_bytes(self.encode())
        return path


def gguf_tensor(name: str, shape: tuple[int, ...], type_name: str, seed: int = 0) -> GgufTensor:
    """A tensor of this type whose bytes are a valid encoding of ordinary weights."""
    rng = np.random.default_rng(seed)
    values = (rng.standard_t(4, shape) * 0.02).astype(np.float32)
    kind = GGML_TYPES[type_name]
    if type_name in STORAGE:
        data = plain_bytes(type_name, values)
    else:
        data = _block_bytes(type_name, prod(shape) // kind.block, rng)
    return GgufTensor(name, shape, type_name, data)


def _block_bytes(type_name: str, blocks: int, rng: np.random.Generator) -> bytes:
    """Random codes with small finite scales: half-precision fields are where ggml's blocks have them."""
    raw = rng.integers(0, 256, (blocks, GGML_TYPES[type_name].nbytes), dtype=np.uint8)
    halves = {
        "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "TQ1_0": (52,),
        "TQ2_0": (64,), "Q4_1": (0, 2), "Q5_1": (0, 2), "Q8_1": (0, 2), "IQ1_M": (), "MXFP4": (), "NVFP4": (),
    }  # fmt: skip
    if type_name == "Q8_K":
        raw[:, :4] = np.frombuffer(np.float32(0.01).tobytes(), np.uint8)
    for at in halves.get(type_name, (0,)) if type_name != "Q8_K" else ():
        raw[:, at : at + 2] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
    if type_name == "MXFP4":
        raw[:, 0] = 120  # 2**-7
    if type_name == "NVFP4":
        raw[:, :4] = 0x30  # 0.5
    if type_name == "IQ1_M":
        raw[:, 49::2] = raw[:, 49::2] & 15 | 0x20  # the half-precision scale's nibbles
    return raw.tobytes()


def plain_bytes(dtype: str, values: np.ndarray) -> bytes:
    """Values in an unquantized dtype; for the 8-bit floats, codes that aren't NaN or infinity."""
    if dtype == "BF16":
        return (np.asarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    if dtype.startswith("F8"):
        return (np.abs(np.asarray(values) * 1000).astype(np.uint8) % 120).tobytes()
    if STORAGE[dtype].kind in "iu":
        return (np.asarray(values) * 50).astype(np.int64).astype(STORAGE[dtype]).tobytes()
    return np.asarray(values).astype(STORAGE[dtype]).tobytes()


def small_gguf() -> GgufFile:
    """About 2 KB: values of every kind, and tensors of several."""
    v = ValueType
    metadata = {
        "general.architecture": gguf_value(v.STRING, "llama"),
        "general.alignment": gguf_value(v.UINT32, 32),
        "llama.block_count": gguf_value(v.UINT32, 1),
        "llama.rope.freq_base": gguf_value(v.FLOAT32, 10000.0),
        "a.u8": gguf_value(v.UINT8, 200),
        "a.i8": gguf_value(v.INT8, -3),
        "a.u16": gguf_value(v.UINT16, 60000),
        "a.i16": gguf_value(v.INT16, -30000),
        "a.i32": gguf_value(v.INT32, -70000),
        "a.u64": gguf_value(v.UINT64, 1 << 63),
        "a.i64": gguf_value(v.INT64, -(1 << 62)),
        "a.f64": gguf_value(v.FLOAT64, 0.1),
        "a.bool": gguf_value(v.BOOL, True),
        "tokenizer.ggml.tokens": gguf_value(v.ARRAY, ["<s>", "a", b"\xff\xfe", "é" * 150], v.STRING),
        "tokenizer.ggml.scores": gguf_value(v.ARRAY, [0.0, -1.5, 2.0, 1e9], v.FLOAT32),
        "tokenizer.ggml.token_type": gguf_value(v.ARRAY, [3, 1, 6, 1], v.INT32),
        "a.flags": gguf_value(v.ARRAY, [True, False], v.BOOL),
        "fewbits.plan": gguf_value(
            v.STRING,
            json.dumps({"blk.0.b": {"format": "Q4_0", "requested": "Q4_K"}, "blk.0.a": {"format": "F32"}}),
        ),
    }
    tensors = [
        gguf_tensor("blk.0.a", (2, 8), "F32", 1),
        gguf_tensor("blk.0.b", (3, 32), "Q4_0", 2),
        gguf_tensor("blk.0.c", (4,), "F16", 3),
        gguf_tensor("blk.0.d", (2, 3, 5), "BF16", 4),
        gguf_tensor("blk.1.b", (1, 256), "Q6_K", 5),
        gguf_tensor("blk.1.c", (2, 32), "IQ4_NL", 6),
    ]
    return GgufFile(metadata, tensors)


def safetensors_bytes(
    tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """A safetensors file: name -> (dtype, shape, data)."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {
            "dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + len(data)]
        }  # fmt: skip
        offset += len(data)
    return safetensors_raw(header, b"".join(data for _, _, data in tensors.values()))


def safetensors_raw(header: Any, data: bytes, length: int | None = None) -> bytes:
    """A file with this header, true or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def small_tensors(seed: int = 0) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """One tensor of each dtype, as `safetensors_bytes` takes them."""
    rng = np.random.default_rng(seed)
    shapes = [(4, 6), (3,), (2, 2, 3), (1, 7), ()]
    return {
        f"model.layers.{i}.{dtype}": (dtype, shape, plain_bytes(dtype, rng.standard_t(4, shape)))
        for i, dtype in enumerate(STORAGE)
        for shape in [shapes[i % len(shapes)]]
    }


def write_hf_directory(
    directory: Path, shards: Sequence[Mapping[str, tuple[str, tuple[int, ...], bytes]]], config: Any = None
) -> Path:
    """A Hugging Face directory of one file, or of several with their index."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config or {"model_type": "llama"}))
    if len(shards) == 1:
        (directory / "model.safetensors").write_bytes(safetensors_bytes(shards[0]))
        return directory
    weight_map = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        (directory / file).write_bytes(safetensors_bytes(shard))
        weight_map |= dict.fromkeys(shard, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


SENTENCES = (
    "The quick brown fox jumps over the lazy dog, 1234 times.\n",
    "def quantize(weight): return round(weight / scale) * scale\n",
    "Few bits, same model: a budget goes in, the best file comes out.\n",
    "Größe 12,5 °C — 中文字符 и немного текста.\n",
)


def write_tokenizer(folder: Path, vocabulary: int) -> None:
    """A byte-level BPE tokenizer with GPT-2's pre-tokenizer, trained on a few sentences."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
