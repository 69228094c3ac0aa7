"""Safetensors files, directories and hub ids that are wrong."""

from __future__ import annotations

import json
import re
import struct

import numpy as np
import pytest

from fewbits.checkpoint.source import open_checkpoint
from fewbits.errors import CheckpointError, HubError
from model_files import (
    plain_bytes,
    safetensors_bytes,
    safetensors_raw,
    small_gguf,
    small_tensors,
    write_hf_directory,
)

AGAIN = "download or copy it again"
F32_4 = ("F32", (4,), bytes(16))


def entry(dtype: object = "F32", shape: object = (4,), offsets: object = (0, 16)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


FILES = {
    "empty": (b"", r"found a file of 0 bytes; allowed: at least 8", AGAIN),
    "huge length": (
        safetensors_raw({"a": entry()}, bytes(16), length=1 << 60),
        r"header's length: found 1152921504606846976 bytes; allowed: at most \d+",
        AGAIN,
    ),
    "length past the end": (safetensors_raw({}, b"", length=100), r"header's length: found 100 bytes", AGAIN),
    "not JSON": (safetensors_raw(b'{"a": ', bytes(16)), r"header is not JSON", AGAIN),
    "not UTF-8": (safetensors_raw(b'{"\xff": 1}', bytes(16)), r"header is not JSON", AGAIN),
    "deep JSON": (safetensors_raw(b"[" * 100_000, b""), r"header is not JSON", AGAIN),
    "an array": (safetensors_raw([], b""), r"the header: found list; allowed: a JSON object", AGAIN),
    "metadata": (
        safetensors_raw({"__metadata__": {"a": 1}}, b""),
        r"__metadata__: found dict; allowed: an object of strings",
        AGAIN,
    ),
    "two of a name": (safetensors_raw(b'{"a": 1, "b": 2, "a": 3}', b""), r"header names a twice", AGAIN),
    "entry": (
        safetensors_raw({"a": 5}, b""),
        r"entry of a: found 5; allowed: data_offsets, dtype, shape",
        AGAIN,
    ),
    "dtype": (
        safetensors_raw({"a": entry("F4")}, bytes(16)),
        r"tensor a has an unknown dtype: found 'F4'; allowed: F64, F32",
        "original model",
    ),
    "dtype's type": (
        safetensors_raw({"a": entry(["F32"])}, bytes(16)),
        r"unknown dtype: found \['F32'\]",
        "original model",
    ),
    "negative shape": (
        safetensors_raw({"a": entry(shape=[-4])}, bytes(16)),
        r"shape of a: found \[-4\]",
        AGAIN,
    ),
    "shape overflows": (
        safetensors_raw({"a": entry(shape=[1 << 40, 1 << 40])}, bytes(16)),
        r"shape of a: found",
        AGAIN,
    ),
    "shape of floats": (
        safetensors_raw({"a": entry(shape=[4.0])}, bytes(16)),
        r"shape of a: found \[4\.0\]",
        AGAIN,
    ),
    "offsets": (
        safetensors_raw({"a": entry(offsets=[0, 12])}, bytes(16)),
        r"data_offsets of a don't fit its shape \[4\]: found 12 bytes \(0 to 12\); allowed: 16 bytes of F32",
        AGAIN,
    ),
    "offsets reversed": (
        safetensors_raw({"a": entry(offsets=[16, 0])}, bytes(16)),
        r"data_offsets of a don't fit",
        AGAIN,
    ),
    "three offsets": (
        safetensors_raw({"a": entry(offsets=[0, 8, 16])}, bytes(16)),
        r"data_offsets of a: found \[0, 8, 16\]",
        AGAIN,
    ),
    "overlap": (
        safetensors_raw({"a": entry(), "b": entry(offsets=[8, 24])}, bytes(24)),
        r"tensors a and b overlap: found b begins at 8; allowed: 16, where a ends",
        AGAIN,
    ),
    "hole": (
        safetensors_raw({"a": entry(), "b": entry(offsets=[20, 36])}, bytes(36)),
        r"hole between a and b: found 4 bytes",
        AGAIN,
    ),
    "hole at the front": (
        safetensors_raw({"a": entry(offsets=[4, 20])}, bytes(20)),
        r"hole between the header and a",
        AGAIN,
    ),
    "past the end": (
        safetensors_raw({"a": entry(shape=[1 << 40], offsets=[0, 1 << 42])}, bytes(16)),
        r"shorter than its header says: the tensor a.*found \d+ bytes; allowed: 4398046511",
        AGAIN,
    ),
    "data left over": (safetensors_raw({"a": entry()}, bytes(20)), r"more data than the header names", AGAIN),
}


@pytest.mark.parametrize(("data", "said", "action"), FILES.values(), ids=FILES.keys())
def test_refused_file(data, said, action, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    message = str(caught.value)

    assert message.startswith(str(path))
    assert re.search(said, message)
    assert action in message


def test_short_shard_is_named_with_both_sizes(tmp_path):
    directory = write_hf_directory(tmp_path / "m", [{"a": F32_4}, {"b": F32_4}])
    shard = directory / "model-00002-of-00002.safetensors"
    whole = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(directory)

    assert f"{shard} is shorter than its header says" in str(caught.value)
    assert f"found {whole - 5} bytes; allowed: {whole}" in str(caught.value)


def test_missing_shard_is_named_with_what_wants_it(tmp_path):
    directory = write_hf_directory(tmp_path / "m", [{"a": F32_4}, {f"b{i}": F32_4 for i in range(5)}])
    (directory / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(directory)
    message = str(caught.value)

    assert "model-00002-of-00002.safetensors is missing" in message
    assert "wants 5 tensors from it: b0, b1, b2 and 2 more" in message
    assert "Download the missing file" in message


def test_index_and_shards_that_disagree(tmp_path):
    directory = write_hf_directory(tmp_path / "m", [{"a": F32_4}, {"b": F32_4}])
    index = directory / "model.safetensors.index.json"
    weights = json.loads(index.read_text())
    weights["weight_map"]["c"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(weights))
    with pytest.raises(
        CheckpointError, match=r"model-00001-of-00002.safetensors holds the tensor c: found no such"
    ):
        open_checkpoint(directory)
    (directory / "model-00002-of-00002.safetensors").write_bytes(safetensors_bytes({"a": F32_4, "b": F32_4}))
    with pytest.raises(CheckpointError, match=r"tensor a is in two shards.*00001.* and .*00002"):
        open_checkpoint(directory)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "is not an index"),
        ('{"weight_map": {}}', "is not an index"),
        ('{"weight_map": {"a": "../../secret.safetensors"}}', r"the shard of a: found '\.\./\.\./secret"),
        ('{"weight_map": {"a": 5}}', "the shard of a: found 5"),
    ],
)
def test_wrong_index(text, said, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(tmp_path)


def test_wrong_config(tmp_path):
    directory = write_hf_directory(tmp_path / "m", [{"a": F32_4}])
    for text, said in (
        ("{", "config.json is not JSON"),
        ("[]", "config.json is not a model's config: found list"),
    ):
        (directory / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=said):
            open_checkpoint(directory)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "weights.ckpt"])
def test_pickles_are_refused_with_the_way_out(name, tmp_path):
    (tmp_path / name).write_bytes(b"PK\x03\x04")
    (tmp_path / "config.json").write_text("{}")
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(CheckpointError, match="runs whatever code") as caught:
            open_checkpoint(source)
        assert name in str(caught.value)
        assert "safe_serialization=True" in str(caught.value)


def test_missing_path_lists_what_was_looked_for(tmp_path):
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "no" / "such" / "model")
    message = str(caught.value)

    assert str(tmp_path / "no/such/model") in message
    assert f"what exists is {tmp_path}" in message
    for kind in ("model.safetensors", "model.safetensors.index.json", ".gguf", "hub id"):
        assert kind in message


def test_directories_and_files_without_a_model(tmp_path):
    (tmp_path / "notes.md").write_text("hello")
    with pytest.raises(CheckpointError, match=r"no model in .*found notes\.md.*allowed: a directory with"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"notes\.md is not a model.*begins with b'hell'"):
        open_checkpoint(tmp_path / "notes.md")


def test_several_models_in_a_directory(tmp_path):
    small_gguf().write(tmp_path / "a.gguf")
    small_gguf().write(tmp_path / "b.gguf")
    with pytest.raises(CheckpointError, match=r"several models: found a\.gguf, b\.gguf.*Name one"):
        open_checkpoint(tmp_path)
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_bytes(safetensors_bytes(small_tensors()))
    with pytest.raises(CheckpointError, match=r"several safetensors files.*Name one"):
        open_checkpoint(tmp_path)


def test_adapters_and_lone_shards(tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(safetensors_bytes(small_tensors()))
    with pytest.raises(CheckpointError, match=r"LoRA adapter.*merge_and_unload"):
        open_checkpoint(tmp_path)
    shard = (tmp_path / "adapter_model.safetensors").rename(tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(
        CheckpointError, match=r"shards without their index.*Download model\.safetensors\.index"
    ):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"one shard of 2.*Name the directory"):
        open_checkpoint(shard)


PACKED = {"quant_method": "compressed-tensors", "format": "pack-quantized"}


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "awq"},
        {"quant_method": "mxfp4"},
        PACKED,
        {**PACKED, "format": "mixed-precision", "config_groups": {"g": {"format": "float-quantized"}}},
    ],
)
def test_models_quantized_for_another_runtime(quantization, tmp_path):
    config = {"model_type": "llama", "quantization_config": quantization}
    with pytest.raises(CheckpointError, match=f"found {quantization['quant_method']}") as caught:
        open_checkpoint(write_hf_directory(tmp_path / "m", [small_tensors()], config))
    assert "Start from the original, unquantized model" in str(caught.value)


def test_packed_weights_without_a_config(tmp_path):
    with pytest.raises(CheckpointError, match=r"packed tensor model\.q\.qweight"):
        open_checkpoint(write_hf_directory(tmp_path / "m", [{"model.q.qweight": ("I32", (4,), bytes(16))}]))


@pytest.mark.parametrize("shape", [(2, 2), (3, 4), (9,), (2, 3, 3), (0,)])
def test_fp8_scale_of_a_wrong_shape(shape, tmp_path):
    scale = np.ones(shape)
    tensors = {
        "a.weight": ("F8_E4M3", (10, 20), bytes(200)),
        "a.weight_scale": ("F32", shape, plain_bytes("F32", scale)),
    }
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [4, 8]}}
    with pytest.raises(
        CheckpointError, match=r"a\.weight_scale doesn't fit.*for \[10, 20\].*blocks? of 4 x 8"
    ):
        open_checkpoint(write_hf_directory(tmp_path / "m", [tensors], config))


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    from huggingface_hub import close_session

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # A port of this machine where nothing listens.
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    close_session()  # it remembers whether it was offline
    yield tmp_path / "hub"
    close_session()


def test_unreachable_hub_id_says_the_way_out(hub_cache, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError) as caught:
        open_checkpoint("someone/some-model")
    message = str(caught.value)

    assert "the model someone/some-model is not in the local cache and can't be downloaded" in message
    assert "hf download someone/some-model" in message
    assert not hub_cache.exists()


@pytest.mark.usefixtures("hub_cache")
def test_no_connection_to_the_hub():
    with pytest.raises(HubError, match="the hub can't be reached"):
        open_checkpoint("someone/some-model")


def test_cached_hub_id_needs_no_network(hub_cache):
    commit = "0123456789" * 4
    repository = hub_cache / "models--someone--some-model"
    write_hf_directory(repository / "snapshots" / commit, [small_tensors()])
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)

    assert open_checkpoint("someone/some-model").path.name == commit
    assert open_checkpoint(f"someone/some-model@{commit}").config == {"model_type": "llama"}
    (repository / "snapshots" / commit / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 40))
    with pytest.raises(HubError):
        open_checkpoint("someone/some-model")
