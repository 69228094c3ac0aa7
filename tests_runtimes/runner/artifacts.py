"""Makes what the tests of runtimes load: from random models, without calibration.

For every case of a row:

    WORK/ROW/CASE/model/          what the runtime loads
    WORK/ROW/CASE/weights/        where only the runtime's library can write that: the directory it was made from
    WORK/ROW/CASE/expected.npz    tokens; float32 logits of the original, of the weights as fewbits dequantizes them
                                  (quantized), and with activations rounded where the container says so (runtime)

They are made by the Python that has fewbits; conversions run in the row's. The tests need NumPy and the runtime.
What another version of fewbits made is made again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
from cases import ROWS, Case
from environments import NATIVE, SOURCES, with_sources

import fewbits
from fewbits.checkpoint.content_hash import file_digest
from fewbits.checkpoint.source import open_checkpoint
from fewbits.evaluation.language_model import load_language_model
from fewbits.export.converters import find_converter

TOKENS = 64
_TINY_TOKENS = 48  # the context of tests/tiny_models.py's
# Parts of fewbits that no artifact depends on.
_WITHOUT = {"cli", "engine", "runtimes", "serving", "targets"}
_CONVERT = """
import json, sys
from fewbits.pipeline.repack import repack
for container, weights, output in json.loads(sys.argv[1]):
    print(repack(weights, output, to=container).describe(), flush=True)
"""


def make_row(row: str, cases: list[Case], work: Path, python: Path) -> None:
    """A row's artifacts, as far as they aren't there.

    Args:
        row: its name.
        cases: what to make.
        work: where rows lie, and the models that they are made from.
        python: the row's.
    """
    made_by = f"{code_digest()} {(ROWS / row / 'requirements.txt').read_text()}"
    folders = {case: work / row / case.name for case in cases}
    missing = {c: f for c, f in folders.items() if read_or_empty(f / "made-by.txt") != made_by}
    for case, folder in missing.items():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        quantize(case, folder, model_of(case, work))
    convert({case: folder for case, folder in missing.items() if find_converter(case.container)}, python)
    for folder in missing.values():
        (folder / "made-by.txt").write_text(made_by)


def quantize(case: Case, folder: Path, model: Path) -> None:
    """What fewbits writes, and the numbers that are expected of it."""
    converted = find_converter(case.container) is not None
    written = folder / ("weights" if converted else "model")
    fewbits.quantize(
        model, written, to=case.container + ("-weights" if converted else ""), format=case.format, effort="fast",
        pins=case.values("pin"),
    )  # fmt: skip
    tokens = list(range(3, 3 + (_TINY_TOKENS if case.value("model") else TOKENS)))
    np.savez(
        folder / "expected.npz", tokens=np.array(tokens), original=logits_of(model, tokens, "float"),
        quantized=logits_of(written, tokens, "float"), runtime=logits_of(written, tokens, "runtime"),
    )  # fmt: skip
    print(folder, flush=True)


def convert(folders: dict[Case, Path], python: Path) -> None:
    """By `fewbits export` in the row's environment: in one process, since libraries import slowly."""
    if folders:
        pairs = [(c.container, str(f / "weights"), str(f / "model")) for c, f in folders.items()]
        subprocess.run([python, "-c", _CONVERT, json.dumps(pairs)], env=with_sources(), check=True)


def read_or_empty(path: Path) -> str:
    """A file's text; "" if there is none."""
    return path.read_text() if path.exists() else ""


def model_of(case: Case, work: Path) -> Path:
    """What a case is made from."""
    kind = case.value("model")
    return tiny_model(work / kind, kind) if kind else small_model(work / "model")


@cache
def code_digest() -> str:
    """Of what decides an artifact's bytes: fewbits' code, but for what runs it, and the tests' models."""
    digest = hashlib.sha256()
    tests = SOURCES.parent / "tests"
    others = [tests / name for name in ("conftest.py", "tiny_models.py", "model_files.py")]
    package = [p for p in SOURCES.rglob("*.py") if not _WITHOUT & {*p.relative_to(SOURCES).parts}]
    for path in [*sorted([*package, *others]), NATIVE]:
        digest.update(file_digest(path).encode())
    return digest.hexdigest()


def small_model(folder: Path) -> Path:
    """The random llama of the tests."""
    if not (folder / "model.safetensors").exists():
        _import_tests()
        from conftest import write_llama

        write_llama(folder, hidden=256, ffn=512)
    return folder


def tiny_model(folder: Path, kind: str) -> Path:
    """A random model of some architecture, with a tokenizer."""
    if not (folder / "config.json").exists():
        _import_tests()
        from model_files import write_tokenizer
        from tiny_models import TINY_MODELS, VOCABULARY, save

        folder.mkdir(parents=True, exist_ok=True)
        save(TINY_MODELS[kind], folder)
        write_tokenizer(folder, VOCABULARY)
    return folder


def _import_tests() -> None:
    folder = str(SOURCES.parent / "tests")
    if folder not in sys.path:
        sys.path.insert(0, folder)


def logits_of(model: Path, tokens: list[int], activations: str) -> np.ndarray:
    """float32 [T, V]."""
    loaded = load_language_model(open_checkpoint(model), activations)
    return np.concatenate(list(loaded.logits(tokens, 0)))
