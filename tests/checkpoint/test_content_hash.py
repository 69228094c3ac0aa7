"""The hash covers what matters, wherever it lies; the cache answers for untouched files alone."""

from __future__ import annotations

import hashlib
import os
import shutil

import pytest

from fewbits.checkpoint import content_hash as module
from fewbits.checkpoint.content_hash import content_hash, file_digest
from fewbits.checkpoint.source import open_checkpoint
from fewbits.errors import CheckpointError
from model_files import small_gguf, small_tensors, write_hf_directory


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWBITS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_single_gguf_is_what_sha256sum_prints(tmp_path):
    path = small_gguf().write(tmp_path / "m.gguf")

    assert content_hash(open_checkpoint(path)) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_directory_counts_everything_that_changes_the_model_and_nothing_else(tmp_path):
    directory = write_hf_directory(tmp_path / "m", [small_tensors(1), {"x": ("F32", (1,), bytes(4))}])
    (directory / "tokenizer.json").write_text("{}")
    first = content_hash(open_checkpoint(directory))
    (directory / "README.md").write_text("hello")
    moved = shutil.copytree(directory, tmp_path / "elsewhere")

    assert content_hash(open_checkpoint(directory)) == first
    assert content_hash(open_checkpoint(moved)) == first
    seen = {first}
    for name in ("tokenizer.json", "config.json", "chat_template.jinja", "model-00002-of-00002.safetensors"):
        path = directory / name
        before = path.read_bytes() if path.exists() else b""
        path.write_bytes(before[:-1] + b" \n" if name.endswith(("json", "jinja")) else before[:-1] + b"\1")
        if name == "config.json":
            path.write_text('{"model_type": "llama", "new": 1}')
        seen.add(content_hash(open_checkpoint(directory)))

    assert len(seen) == 5


def test_digests_are_remembered_until_the_file_changes(tmp_path, cache, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    first = file_digest(path)
    assert len(list((cache / "digests").iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr(module.hashlib, "file_digest", lambda *_: pytest.fail("hashed again"))
        assert file_digest(path) == first
    stat = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    assert file_digest(path) == hashlib.sha256(b"two").hexdigest() != first


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"identity": 5, "sha256": 6}', b"null"])
def test_damaged_cache_entries_are_ignored(damage, tmp_path, cache):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    expected = file_digest(path)
    (entry,) = (cache / "digests").iterdir()
    entry.write_bytes(damage)

    assert file_digest(path) == expected


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("FEWBITS_CACHE", str(tmp_path / "file"))
    (tmp_path / "a").write_bytes(b"one")

    assert file_digest(tmp_path / "a") == hashlib.sha256(b"one").hexdigest()


def test_a_file_that_changes_meanwhile_is_an_error(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    real = hashlib.file_digest

    def slow(file, name):
        digest = real(file, name)
        path.write_bytes(b"three")
        return digest

    monkeypatch.setattr(module.hashlib, "file_digest", slow)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        file_digest(path)


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="cannot read"):
        file_digest(tmp_path / "none")
