"""Text to calibrate on that is on every machine: no network, no download."""

from __future__ import annotations

import ast
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fewbits.calibration.generated_text import generated_text
from fewbits.calibration.passage import Passage
from fewbits.checkpoint.checkpoint import Checkpoint
from fewbits.language_model.text_tokenizer import TextTokenizer

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


def default_text(checkpoint: Checkpoint, tokenizer: TextTokenizer, tokens: int) -> tuple[str, list[Passage]]:
    """Name and passages of a text of at least `tokens` tokens for a model that comes without one.

    What the model itself writes when it is given varied beginnings, and answers to questions where it has a
    chat template, if it's small enough to do so quickly; and docstrings and the licence of the Python standard
    library (PSF licence). It isn't the text that `fewbits evaluate` uses by default, which is Python's language
    reference.
    """
    own = generated_text(checkpoint, tokenizer)
    answers = Passage(own.answers, markup=True)
    # Passages that are joined can have a few tokens less than apart.
    left = (
        tokens + tokens // 50 - len(answers.tokens(tokenizer)) - len(Passage(own.continued).tokens(tokenizer))
    )
    available = list(standard_library_text())
    chosen = []
    for i in np.random.default_rng(0).permutation(len(available)).tolist():
        if left <= 0:
            break
        chosen.append(available[i])
        left -= len(Passage(available[i]).tokens(tokenizer))
    name = f"Python {platform.python_version()} docstrings and licence"
    if own.continued:
        name += ", the model's own writing"
    if own.answers:
        name += " and answers"
    passages = [Passage("\n\n".join([*chosen, own.continued]) + "\n"), answers]
    return name, [passage for passage in passages if passage.text]


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
