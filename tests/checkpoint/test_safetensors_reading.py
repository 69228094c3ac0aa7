"""Safetensors files and Hugging Face directories that are right."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from fewbits.checkpoint.dtypes import STORAGE, decode_plain
from fewbits.checkpoint.safetensors import read_safetensors_header
from fewbits.checkpoint.source import open_checkpoint
from model_files import plain_bytes, safetensors_bytes, small_tensors, write_hf_directory

torch = pytest.importorskip("torch")
TORCH_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64,
}  # fmt: skip


@pytest.mark.parametrize("dtype", STORAGE)
def test_reads_what_the_safetensors_library_writes(dtype, tmp_path):
    from safetensors.torch import save_file

    codes = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (6, 5 * 8), dtype=np.uint8))
    if dtype == "BOOL":
        codes &= 1
    stored = codes.view(TORCH_DTYPES[dtype]).reshape(2, 3, -1)
    save_file({"w": stored, "other": torch.ones(3)}, tmp_path / "model.safetensors", {"format": "pt"})
    header = read_safetensors_header(tmp_path / "model.safetensors")
    tensor = header.tensors["w"]

    assert header.metadata == {"format": "pt"}
    assert tensor.dtype == dtype
    assert tensor.shape == tuple(stored.shape)
    np.testing.assert_array_equal(tensor.read(), stored.to(torch.float32).numpy())
    np.testing.assert_array_equal(tensor.rows(1, 4), stored.reshape(6, -1)[1:4].to(torch.float32).numpy())
    assert (
        tensor.raw(5, 6).tobytes()
        == stored.reshape(6, -1)[5].contiguous().view(torch.uint8).numpy().tobytes()
    )


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F8_E8M0"])
def test_every_code_of_the_8_bit_floats(dtype):
    codes = np.arange(256, dtype=np.uint8)
    expected = torch.from_numpy(codes).view(TORCH_DTYPES[dtype]).to(torch.float32).numpy()

    np.testing.assert_array_equal(decode_plain(dtype, codes.reshape(1, -1))[0], expected)


def test_shards_are_read_in_order(tmp_path):
    everything = small_tensors()
    names = list(everything)
    shards = [{n: everything[n] for n in part} for part in (names[:4], names[4:9], names[9:])]
    checkpoint = open_checkpoint(write_hf_directory(tmp_path / "m", shards, {"model_type": "qwen2", "n": 1}))

    assert list(checkpoint.tensors) == names
    assert [f.name for f in checkpoint.files] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert checkpoint.config == {"model_type": "qwen2", "n": 1}
    assert checkpoint.path == tmp_path / "m"
    assert checkpoint.container == "safetensors"
    for name, (dtype, shape, data) in everything.items():
        rows = np.frombuffer(data, np.uint8).reshape(checkpoint.tensors[name].matrix[0], -1)
        np.testing.assert_array_equal(
            checkpoint.tensors[name].read(), decode_plain(dtype, rows).reshape(shape)
        )


def test_every_way_to_name_a_model(tmp_path):
    directory = write_hf_directory(tmp_path / "one", [small_tensors()])
    sharded = write_hf_directory(tmp_path / "two", [small_tensors(), {"x": ("F32", (1,), b"\0\0\0\0")}])
    other = tmp_path / "one" / "other.safetensors"
    other.write_bytes(safetensors_bytes({"y": ("F32", (1,), b"\0\0\0\0")}))

    assert len(open_checkpoint(directory).tensors) == len(small_tensors())
    assert open_checkpoint(directory / "model.safetensors").path == directory
    assert list(open_checkpoint(str(other)).tensors) == ["y"]
    assert open_checkpoint(other).path == other
    assert open_checkpoint(other).config == {"model_type": "llama"}
    assert "x" in open_checkpoint(sharded / "model.safetensors.index.json").tensors


def test_a_single_file_of_any_name_and_no_config(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(safetensors_bytes(small_tensors()))
    checkpoint = open_checkpoint(tmp_path)

    assert checkpoint.config == {}
    assert "config.json" in checkpoint.warnings[0]
    assert len(checkpoint.tensors) == len(small_tensors())


def test_tensors_without_numbers(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_bytes({"none": ("F32", (1 << 50, 0), b""), "vector": ("BF16", (0,), b"")}))
    tensors = open_checkpoint(path).tensors

    assert tensors["none"].read().shape == (1 << 50, 0)
    assert tensors["vector"].read().shape == (0,)
    assert list(tensors["none"].chunks(10)) == []


def test_reading_a_large_file_takes_little_memory(tmp_path):
    """2 GB of BF16 in a sparse file, read in chunks of 4 million numbers."""
    rows, columns = 131072, 8192
    entry = {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [0, rows * columns * 2]}
    header = json.dumps({"w": entry}).encode()
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + rows * columns * 2)
    code = (
        "import sys; from fewbits.checkpoint.source import open_checkpoint\n"
        "tensor = open_checkpoint(sys.argv[1]).tensors['w']\n"
        "seen = sum(chunk.size for chunk in tensor.chunks(1 << 22))\n"
        # not getrusage, whose peak a child inherits from its parent
        "print(seen, *(l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')))"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    seen, kilobytes = map(int, done.stdout.split())

    assert seen == rows * columns
    assert kilobytes < 120_000


def _fp8(codes: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    return "F8_E4M3", codes.shape, codes.astype(np.uint8).tobytes()


def _f32(values: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    return "F32", np.shape(values), plain_bytes("F32", np.asarray(values))


BLOCKS = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [4, 8]}}
MODELOPT = {"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}}
GROUPS = {
    "quantization_config": {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": {"weights": {"num_bits": 8, "block_structure": [4, 8]}}},
    }
}


@pytest.mark.parametrize(
    ("shape", "scale_shape", "suffix", "config"),
    [
        ((10, 20), (3, 3), "_scale_inv", BLOCKS),
        ((10, 20), (3, 3), "_scale", GROUPS),
        ((300, 140), (3, 2), "_scale_inv", {"quantization_config": {"quant_method": "fp8"}}),
        ((10, 20), (), "_scale", GROUPS),
        ((10, 20), (1,), "_scale", {}),
        ((10, 20), (10,), "_scale", GROUPS),
        ((10, 20), (10, 1), "_scale", {"quantization_config": {"quant_method": "fbgemm_fp8"}}),
        ((3, 10, 20), (3, 3, 3), "_scale_inv", BLOCKS),
        ((3, 10, 20), (3, 1, 1), "_scale", {}),
        ((3, 10, 20), (3, 10), "_scale", {}),
        ((3, 10, 20), (3, 10, 1), "_scale", MODELOPT),
        ((20,), (1,), "_scale", {}),
        ((), (), "_scale", {}),
    ],
)  # fmt: skip
def test_fp8_scales_are_applied(shape, scale_shape, suffix, config, tmp_path):
    rng = np.random.default_rng(5)
    codes = rng.integers(0, 120, shape)
    scale = rng.uniform(0.5, 2, scale_shape).astype(np.float32)
    tensors = {
        "a.weight": _fp8(codes),
        f"a.weight{suffix}": _f32(scale),
        "a.input_scale": _f32(np.float32(3)),
        "norm.weight": _f32(np.ones(3)),
    }
    checkpoint = open_checkpoint(write_hf_directory(tmp_path / "m", [tensors], {"model_type": "x", **config}))
    values = torch.from_numpy(codes.astype(np.uint8)).view(torch.float8_e4m3fn).to(torch.float32).numpy()
    full = scale
    if scale.size > 1:
        full = scale if scale.ndim == len(shape) else scale[..., None]
        block = (4, 8) if shape[-1] == 20 else (128, 128)
        for axis, length in zip((-2, -1), block, strict=True):
            if full.shape[axis] not in (1, shape[axis]):
                full = np.repeat(full, length, axis).take(range(shape[axis]), axis)
    expected = (values * full).astype(np.float32)
    weight = checkpoint.tensors["a.weight"]

    assert set(checkpoint.tensors) == {"a.weight", "norm.weight"}
    np.testing.assert_array_equal(weight.read(), expected)
    n, k = weight.matrix
    np.testing.assert_array_equal(weight.rows(n // 3, n), expected.reshape(n, k)[n // 3 :])
    assert weight.dtype == "F8_E4M3"
    assert "already 8-bit (F8_E4M3)" in checkpoint.warnings[-1]
    assert "quantization_config" not in checkpoint.config


def test_fp8_without_scales_is_taken_as_it_is(tmp_path):
    codes = np.arange(24).reshape(4, 6)
    checkpoint = open_checkpoint(write_hf_directory(tmp_path / "m", [{"a.weight": _fp8(codes)}]))
    expected = torch.arange(24, dtype=torch.uint8).view(torch.float8_e4m3fn).to(torch.float32).reshape(4, 6)

    np.testing.assert_array_equal(checkpoint.tensors["a.weight"].read(), expected.numpy())
    assert len(checkpoint.warnings) == 1
