"""Text to calibrate on that is on every machine: no network, no download."""

from __future__ import annotations

import ast
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fewbits.calibration.generated_text import generated_text
from fewbits.checkpoint.checkpoint import Checkpoint
from fewbits.language_model.text_tokenizer import TextTokenizer

# More than a token of any tokenizer has on average in English.
_CHARACTERS_PER_TOKEN = 6

# Modules of the standard library with much to say, of many fields.
_MODULES = (
    "argparse", "ast", "base64", "bdb", "bisect", "calendar", "cmd", "codecs", "collections/__init__",
    "configparser", "contextlib", "copy", "csv", "dataclasses", "datetime", "_pydatetime", "_pydecimal",
    "difflib", "doctest", "email/message", "enum", "fractions", "ftplib", "functools", "getopt", "gettext",
    "graphlib", "gzip", "heapq", "html/parser", "http/client", "http/cookiejar", "imaplib", "inspect",
    "ipaddress", "json/__init__", "logging/__init__", "mailbox", "mimetypes", "optparse", "os", "pathlib",
    "pdb", "pickle", "pickletools", "plistlib", "pprint", "profile", "random", "re/__init__", "sched",
    "selectors", "shelve", "shutil", "smtplib", "socket", "socketserver", "ssl", "statistics", "string",
    "subprocess", "tarfile", "tempfile", "textwrap", "threading", "timeit", "tokenize", "trace", "turtle",
    "typing", "unittest/case", "unittest/mock", "urllib/parse", "urllib/request", "uuid", "warnings", "weakref",
    "xml/dom/minidom", "xml/etree/ElementTree", "zipfile", "zipfile/__init__",
)  # fmt: skip


def default_text(checkpoint: Checkpoint, tokenizer: TextTokenizer, tokens: int) -> tuple[str, bytes]:
    """Name and UTF-8 bytes of a text of at least `tokens` tokens for a model that comes without one.

    What the model itself writes when it is given varied beginnings, if it's small enough to do so quickly,
    and docstrings and the licence of the Python standard library (PSF licence). It isn't the text that
    `fewbits evaluate` uses by default, which is Python's language reference.
    """
    written = generated_text(checkpoint, tokenizer)
    passages = list(standard_library_text())
    chosen, length = [], 0
    for i in np.random.default_rng(0).permutation(len(passages)).tolist():
        # Docstrings have about 4 characters a token, and what is left over costs nothing.
        if length > _CHARACTERS_PER_TOKEN * tokens - len(written):
            break
        chosen.append(passages[i])
        length += len(passages[i])
    text = "\n\n".join([*chosen, written]) + "\n"
    own = ", the model's own writing" if written else ""
    return f"Python {platform.python_version()} docstrings and licence{own}", text.encode()


def standard_library_text() -> Iterator[str]:
    """Passages of prose from the standard library's sources."""
    folder = Path(sysconfig.get_path("stdlib"))
    licence = folder / "LICENSE.txt"
    if licence.is_file():
        yield licence.read_text(encoding="utf-8", errors="replace").strip()
    for module in _MODULES:
        path = folder / f"{module}.py"
        if path.is_file():
            yield from _docstrings(path)


def _docstrings(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node)
            # One-line docstrings say little without their function.
            if text and len(text) > 120:
                yield text.strip()
