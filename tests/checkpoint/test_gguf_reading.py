"""GGUF files that are right: read as llama.cpp and the gguf package read them."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import gguf
import numpy as np
import pytest

from fewbits.checkpoint.gguf import open_gguf, read_gguf_header
from fewbits.checkpoint.gguf_constants import GGML_TYPES, RETIRED_TYPES, ValueType
from fewbits.checkpoint.gguf_cursor import GgufArray
from fewbits.checkpoint.source import open_checkpoint
from fewbits.errors import CheckpointError
from model_files import GgufFile, gguf_tensor, gguf_value, small_gguf
from published_model import published_model


class _Traits(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("block", ctypes.c_int64),
        ("interleave", ctypes.c_int64),
        ("nbytes", ctypes.c_size_t),
        ("quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float", ctypes.c_void_p),
    ]


@cache
def ggml() -> ctypes.CDLL:
    xllamacpp = pytest.importorskip("xllamacpp")
    (path,) = Path(xllamacpp.__file__).parent.glob("xllamacpp*.so")
    return ctypes.CDLL(str(path))


def ggml_traits(number: int) -> _Traits:
    """A row of ggml's own table of types, from llama.cpp."""
    ggml().ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
    return ggml().ggml_get_type_traits(number).contents


def ggml_decode(number: int, data: bytes, count: int) -> np.ndarray:
    decode = ggml_traits(number).to_float or ggml().dequantize_row_q8_K  # the one that isn't in the table
    values = np.empty(count, np.float32)
    decode(ctypes.c_char_p(data), ctypes.c_void_p(values.ctypes.data), ctypes.c_int64(count))
    return values


@pytest.mark.parametrize("name", GGML_TYPES)
def test_type_table_is_ggmls(name):
    kind = GGML_TYPES[name]
    traits = ggml_traits(kind.number)

    assert (traits.name.decode().upper(), traits.block, traits.nbytes) == (name, kind.block, kind.nbytes)


def test_type_table_lacks_nothing_that_the_gguf_package_knows():
    theirs = {t.name: (t.value, *gguf.GGML_QUANT_SIZES[t]) for t in gguf.GGMLQuantizationType}
    theirs.pop("Q8_1")  # the package counts its scales as single precision; ggml made them half
    ours = {t.name: (t.number, t.block, t.nbytes) for t in GGML_TYPES.values()}

    assert theirs.items() <= ours.items()
    assert not set(RETIRED_TYPES) & {t.number for t in GGML_TYPES.values()}


@pytest.mark.parametrize("name", [n for n, t in GGML_TYPES.items() if t.quantized])
def test_every_block_format_decodes_as_ggml_does(name, tmp_path):
    kind = GGML_TYPES[name]
    tensor = gguf_tensor("w", (5, 3 * kind.block), name, 7)
    read = open_gguf(GgufFile({}, [tensor]).write(tmp_path / "m.gguf")).tensors["w"]
    if name != "Q8_1":
        expected = ggml_decode(kind.number, tensor.data, 15 * kind.block).reshape(5, -1)
    else:  # which ggml decodes nowhere: it is the right-hand side of dot products
        blocks = np.frombuffer(tensor.data, np.uint8).reshape(-1, 36)
        scales = blocks[:, :2].copy().view(np.float16).astype(np.float32)
        expected = (scales * blocks[:, 4:].view(np.int8)).reshape(5, -1)

    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(read.read(), expected)
    np.testing.assert_array_equal(read.rows(2, 4), expected[2:4])
    assert read.raw(1, 2).tobytes() == tensor.data[len(tensor.data) // 5 :][: len(tensor.data) // 5]


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64"])
def test_plain_types(name, tmp_path):
    tensor = gguf_tensor("w", (3, 4, 5), name, 3)
    read = open_gguf(GgufFile({}, [tensor]).write(tmp_path / "m.gguf")).tensors["w"]
    values = np.random.default_rng(3).standard_t(4, (3, 4, 5)) * 0.02
    tolerance = {"F32": 1e-7, "F64": 1e-7, "F16": 1e-3, "BF16": 1e-2}.get(name)

    assert read.shape == (3, 4, 5)
    assert read.matrix == (12, 5)
    if tolerance:
        np.testing.assert_allclose(read.read(), values, rtol=tolerance, atol=1e-7)
    else:
        expected = (values.astype(np.float32) * 50).astype(np.int64).astype(np.float32)
        np.testing.assert_array_equal(read.read(), expected)


def test_metadata_keeps_values_and_types(tmp_path):
    checkpoint = open_checkpoint(small_gguf().write(tmp_path / "m.gguf"))
    metadata, types = checkpoint.metadata, checkpoint.metadata_types

    assert metadata["a.u8"] == 200
    assert metadata["a.i8"] == -3
    assert metadata["a.u64"] == 1 << 63
    assert metadata["a.f64"] == 0.1
    assert metadata["a.bool"] is True
    assert types["a.i64"] == (ValueType.INT64, None)
    assert types["tokenizer.ggml.scores"] == (ValueType.ARRAY, ValueType.FLOAT32)
    tokens = metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, GgufArray)
    assert list(tokens) == ["<s>", "a", "\udcff\udcfe", "é" * 150]
    assert tokens[-1] == tokens[3] == "é" * 150
    assert tokens[1:3] == ["a", "\udcff\udcfe"]
    assert tokens[2].encode("utf-8", "surrogateescape") == b"\xff\xfe"
    assert metadata["tokenizer.ggml.token_type"] == [3, 1, 6, 1]
    assert metadata["tokenizer.ggml.scores"][1] == -1.5
    assert metadata["a.flags"].tolist() == [True, False]
    with pytest.raises(IndexError):
        tokens[4]


def test_raw_arrays_can_be_written_again(tmp_path):
    words = ["", "x" * 255, "y" * 256, "z" * 70000, *(f"token {i}" for i in range(9000)), "é" * 200]
    value = gguf_value(ValueType.ARRAY, words, ValueType.STRING)
    array = read_gguf_header(GgufFile({"t": value}).write(tmp_path / "m.gguf")).metadata["t"]

    assert array == words
    assert len(array) == len(words)
    assert array.raw == value[16:]


def test_reads_what_the_gguf_package_writes(tmp_path):
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(128)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    values = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    writer.add_tensor("a", values)
    packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q5_1)
    writer.add_tensor("b", packed, raw_dtype=gguf.GGMLQuantizationType.Q5_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = open_checkpoint(path)

    assert checkpoint.metadata["general.architecture"] == "llama"
    assert checkpoint.metadata["tokenizer.ggml.tokens"] == ["a", "b"]
    np.testing.assert_array_equal(checkpoint.tensors["a"].read(), values)
    np.testing.assert_array_equal(
        checkpoint.tensors["b"].read(), gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q5_1)
    )
    assert read_gguf_header(path).alignment == 128


def test_a_published_model_reads_as_the_gguf_package_reads_it():
    path = published_model()
    checkpoint = open_checkpoint(path)
    reader = gguf.GGUFReader(path)

    assert list(checkpoint.tensors) == [t.name for t in reader.tensors]
    assert checkpoint.metadata["tokenizer.ggml.tokens"] == reader.fields["tokenizer.ggml.tokens"].contents()
    assert checkpoint.metadata["tokenizer.ggml.merges"] == reader.fields["tokenizer.ggml.merges"].contents()
    for tensor in reader.tensors[:12]:
        some = np.array(tensor.data[:64] if tensor.data.ndim > 1 else tensor.data)
        expected = np.atleast_2d(gguf.quants.dequantize(some, tensor.tensor_type))
        np.testing.assert_array_equal(checkpoint.tensors[tensor.name].rows(0, len(expected)), expected)
    assert "Q4_1 (210 tensors)" in checkpoint.warnings[0]
    assert "original model" in checkpoint.warnings[0]


def _split(tmp_path: Path, count: int = 3, **lies: int) -> list[Path]:
    paths = []
    for i in range(count):
        metadata = {
            "split.no": gguf_value(ValueType.UINT16, lies.get(f"no{i}", i)),
            "split.count": gguf_value(ValueType.UINT16, lies.get(f"count{i}", count)),
        }
        if i == 0:
            metadata["general.architecture"] = gguf_value(ValueType.STRING, "llama")
        name = "t0" if lies.get("twice") else f"t{i}"
        file = GgufFile(metadata, [gguf_tensor(name, (2, 4), "F32", i)])
        paths.append(file.write(tmp_path / f"m-{i + 1:05}-of-{count:05}.gguf"))
    return paths


@pytest.mark.parametrize("given", ["first", "last", "directory"])
def test_split_files_are_read_together(tmp_path, given):
    paths = _split(tmp_path)
    checkpoint = open_checkpoint({"first": paths[0], "last": paths[2], "directory": tmp_path}[given])

    assert list(checkpoint.tensors) == ["t0", "t1", "t2"]
    assert checkpoint.files == tuple(paths)
    assert checkpoint.path == paths[0]
    assert dict(checkpoint.metadata) == {"general.architecture": "llama"}


def test_missing_split_file_is_named(tmp_path):
    paths = _split(tmp_path)
    paths[1].unlink()
    with pytest.raises(CheckpointError, match=r"m-00002-of-00003\.gguf.*Download") as caught:
        open_checkpoint(paths[0])
    assert "1 of the model's 3 shards" in str(caught.value)


def test_renamed_split_file_is_refused(tmp_path):
    other = _split(tmp_path)[0].rename(tmp_path / "other.gguf")
    with pytest.raises(CheckpointError, match=r"one shard of 3.*other\.gguf.*llama-gguf-split --merge"):
        open_checkpoint(other)


def test_split_files_of_different_models_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"00002-of-00003.*split\.no 7"):
        open_checkpoint(_split(tmp_path, no1=7)[0])
    with pytest.raises(CheckpointError, match="t0 occurs twice"):
        open_checkpoint(_split(tmp_path, twice=1)[0])
