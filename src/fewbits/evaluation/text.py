"""Text to evaluate on."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from pathlib import Path

from fewbits.errors import EvaluationError


@dataclass(frozen=True)
class EvaluationText:
    """A text, where it is from, and the SHA-256 of its UTF-8 bytes in hexadecimal."""

    name: str
    text: str
    sha256: str


def read_text(path: str | Path | None) -> EvaluationText:
    """The text of a file, or without one the default text.

    Raises:
        EvaluationError: the file can't be read, isn't UTF-8, or is empty.
    """
    if path is None:
        return default_text()
    path = Path(path)
    try:
        data = path.read_bytes()
        text = data.decode("utf-8")
    except OSError as error:
        raise EvaluationError(
            f"can't read the text {path}", found=error.strerror or str(error), action="Give a text file"
        ) from error
    except UnicodeDecodeError as error:
        raise EvaluationError(
            f"{path} isn't UTF-8 text",
            found=f"byte {data[error.start]:#04x} at offset {error.start}",
            action="Give a plain text file, or convert it with iconv",
        ) from error
    if not text.strip():
        raise EvaluationError(f"{path} is empty", found=f"{len(data)} bytes", action="Give a longer text")
    return EvaluationText(path.name, text, hashlib.sha256(data).hexdigest())


def default_text() -> EvaluationText:
    """The language reference that comes with Python for its `help()`, topics in alphabetical order.

    About 460,000 characters of English prose and code under the PSF licence, on every machine that runs
    fewbits, no network needed. It differs between Python versions, so the name says which one it is;
    compare figures on this text only between equal hashes.
    """
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name].strip() for name in sorted(topics)) + "\n"
    name = f"Python {platform.python_version()} language reference (pydoc topics)"
    return EvaluationText(name, text, hashlib.sha256(text.encode()).hexdigest())
