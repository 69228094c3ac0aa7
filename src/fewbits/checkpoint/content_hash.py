"""One hash for everything that a result depends on: weights, config and tokenizer."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from fewbits.checkpoint.byte_range import unreadable
from fewbits.checkpoint.checkpoint import Checkpoint
from fewbits.checkpoint.hf_directory import COMPANIONS
from fewbits.errors import CheckpointError


def content_hash(checkpoint: Checkpoint) -> str:
    """sha256 in hexadecimal over a checkpoint's files; where it lies and when it was written don't count.

    Of a single GGUF file its plain sha256, as sha256sum prints it; otherwise that of one line
    ``sha256  name`` per file, sorted by name, config and tokenizer files included.

    Raises:
        CheckpointError: a file can't be read, or changes meanwhile.
    """
    files = set(checkpoint.files)
    root = checkpoint.files[0].parent
    if checkpoint.container == "safetensors":
        files |= {p for pattern in ("config.json", *COMPANIONS) for p in root.glob(pattern) if p.is_file()}
    ordered = sorted(files, key=lambda p: p.relative_to(root).as_posix())
    with ThreadPoolExecutor(min(len(ordered), os.cpu_count() or 1, 8)) as pool:
        digests = list(pool.map(file_digest, ordered))
    if checkpoint.container == "gguf" and len(ordered) == 1:
        return digests[0]
    lines = [f"{d}  {p.relative_to(root).as_posix()}\n" for d, p in zip(digests, ordered, strict=True)]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file in hexadecimal, remembered for as long as the file isn't touched.

    Raises:
        CheckpointError: the file can't be read, or changes meanwhile.
    """
    try:
        identity = _identity(path)
        entry = cache_directory() / "digests" / hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
        if (known := _remembered(entry, identity)) is not None:
            return known
        with path.open("rb", buffering=0) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if _identity(path) != identity:
            raise CheckpointError(
                f"{path} changed while it was read",
                found="another size or time of change",
                action="Wait until nothing writes to it any more, and start again.",
            )
    except OSError as error:
        raise unreadable(path, error) from error
    _remember(entry, identity, digest)
    return digest


def cache_directory() -> Path:
    """Where fewbits keeps what it can make again: $FEWBITS_CACHE, or fewbits in the user's cache folder."""
    if folder := os.environ.get("FEWBITS_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fewbits"


def _identity(path: Path) -> list[int]:
    """What changes whenever the file does: size, times in nanoseconds, inode."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev]


def _remembered(entry: Path, identity: list[int]) -> str | None:
    try:
        data = json.loads(entry.read_bytes())
        if data["identity"] == identity and isinstance(data["sha256"], str):
            return str(data["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # never hashed, or an entry that another version wrote
    return None


def _remember(entry: Path, identity: list[int], digest: str) -> None:
    # A cache that can't be written (read-only home, full disk) costs time and nothing else.
    with suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=entry.parent)
        with os.fdopen(descriptor, "w") as file:
            json.dump({"identity": identity, "sha256": digest}, file)
        Path(temporary).replace(entry)
