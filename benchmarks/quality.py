"""KL divergence against file size: llama-quantize's best files and fewbits', measured by llama-perplexity in one run.

    python benchmarks/quality.py --name SmolLM2-135M --reference DIR --llama DIR --text TEST.txt \
        --calibration TRAIN.txt --work DIR --effort balanced best --sizes 81.1MB,87.7MB,102.8MB,112.1MB
    python benchmarks/quality.py --render

The first makes, from a bf16 Hugging Face directory, its bf16 GGUF, llama-imatrix's importance matrix of the
calibration text (64 chunks of 512), the files of llama-quantize with it, and those of `fewbits quantize`, and measures
each as llama-perplexity does: KL divergence to the bf16 file on 24 chunks of 512. Rows go to
benchmarks/results/quality.json as they are made, and the page to docs/quality.md; the second only writes the page.

A row that was measured with the same reference, texts, llama.cpp and, for fewbits' files, the same source code is
kept, so that a run that was stopped goes on. The first fewbits file of an effort starts with an empty cache: its time
is that of everything from nothing. Files are deleted once measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import fewbits
from fewbits.planning.byte_size import parse_bytes
from llama_cpp import LlamaCpp, processor
from process_tree import run_measured
from quality_page import write_pages
from quality_peers import Recipe, recipes_for

RESULTS = Path(__file__).parent / "results" / "quality.json"
IMATRIX_CHUNKS, CHUNKS, CONTEXT = 64, 24, 512
# What has to be the same for a row to be kept.
SETTINGS = (
    "reference", "text", "text_sha256", "calibration", "calibration_sha256", "llama_cpp", "imatrix_chunks",
    "chunks", "context",
)  # fmt: skip

Row = dict[str, Any]


class Results:
    """One model's rows in the file of results, which is written after each."""

    def __init__(self, path: Path, name: str, settings: Mapping[str, Any]) -> None:
        self.path, self.name = path, name
        models = self._read()["models"]
        before = models.get(name, {})
        same = all(before.get(key) == settings[key] for key in SETTINGS)
        self.model: dict[str, Any] = {**(before if same else {"peers": [], "fewbits": []}), **settings}

    def _read(self) -> dict[str, Any]:
        return json.loads(self.path.read_text()) if self.path.exists() else {"models": {}}

    def find(self, series: str, **key: Any) -> Row | None:
        """The row of `series` with these values, if it was measured."""
        return next((r for r in self.model[series] if key.items() <= r.items()), None)

    def drop(self, series: str, keep: Iterable[Row]) -> None:
        """Forget the rows that aren't in `keep`."""
        kept = list(keep)
        self.model[series] = [row for row in self.model[series] if row in kept]

    def add(self, series: str, row: Row) -> None:
        """Keep a row, and write the file."""
        self.model[series] = sorted([*self.model[series], row], key=lambda r: (r["bytes"], r["kl_mean"]))
        self.write()
        print(json.dumps(row), flush=True)

    def write(self) -> None:
        """Write the file, other models as they are in it now."""
        self.model["rank_correlation"] = rank_correlation(self.model["fewbits"])
        everything = self._read()
        everything["models"][self.name] = self.model
        part = self.path.with_name(f"{self.path.name}.part")
        part.write_text(json.dumps(everything, indent=1) + "\n")
        part.replace(self.path)


def rank_correlation(rows: Sequence[Row]) -> float | None:
    """Spearman's rank correlation of predicted and measured KL divergence; None for fewer than three files."""
    pairs = [(r["predicted_kl"], r["kl_mean"]) for r in rows if r["predicted_kl"] is not None]
    if len(pairs) < 3:
        return None
    ranks = [_ranks(np.array(values)) for values in zip(*pairs, strict=True)]
    if min(r.std() for r in ranks) == 0:
        return None
    return round(float(np.corrcoef(ranks[0], ranks[1])[0, 1]), 4)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Rank of each value, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def main() -> None:
    arguments = parse_arguments()
    if arguments.reference:
        arguments.work.mkdir(parents=True, exist_ok=True)
        measure(arguments)
    if arguments.results == RESULTS or arguments.docs:
        write_pages(arguments.results, arguments.docs or RESULTS.parents[2] / "docs")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--render", action="store_true", help="only write the page from the results")
    parser.add_argument("--name", default="SmolLM2-135M", help="what the model is called in the table")
    parser.add_argument("--reference", type=Path, help="bf16 Hugging Face directory")
    parser.add_argument("--llama", type=Path, help="folder with bin/llama-*")
    parser.add_argument("--text", type=Path, help="to measure on")
    parser.add_argument("--calibration", type=Path, help="to calibrate on")
    parser.add_argument("--work", type=Path, help="folder for files and caches")
    parser.add_argument("--effort", nargs="*", default=["balanced"], choices=("fast", "balanced", "best"))
    parser.add_argument("--sizes", default="81.1MB,87.7MB,102.8MB,112.1MB", help="of fewbits' files")
    parser.add_argument(
        "--peers", nargs="*", metavar="NAME", help="only these recipes of llama-quantize; none: no peers"
    )
    parser.add_argument(
        "--default-calibration", action="store_true", help="fewbits calibrates on its default text instead"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument(
        "--docs", type=Path, help="folder of the page; default: docs, for the default results"
    )
    arguments = parser.parse_args()
    needed = ("reference", "llama", "text", "calibration", "work")
    missing = [f"--{name}" for name in needed if getattr(arguments, name) is None]
    if not arguments.render and missing:
        parser.error(f"to measure, give {', '.join(missing)}; or --render")
    if arguments.render and arguments.reference:
        parser.error("--render measures nothing: leave --reference out")
    return arguments


def measure(arguments: argparse.Namespace) -> None:
    """All rows that are missing."""
    llama = LlamaCpp(arguments.llama, arguments.threads)
    identity = folder_sha256(arguments.reference, ("*.safetensors", "config.json", "tokenizer.json"))
    settings = {
        "reference": identity,
        "text": arguments.text.name,
        "text_sha256": file_sha256(arguments.text),
        "calibration": arguments.calibration.name,
        "calibration_sha256": file_sha256(arguments.calibration),
        "llama_cpp": llama_version(arguments.llama),
        "imatrix_chunks": IMATRIX_CHUNKS,
        "chunks": CHUNKS,
        "context": CONTEXT,
    }
    results = Results(arguments.results, arguments.name, settings)
    original = bf16_gguf(arguments, identity)
    results.model["bf16_bytes"] = original.stat().st_size
    rows = {t.shape[-1] for t in fewbits.inspect(original).tensors if len(t.shape) > 1}
    recipes = recipes_for(rows)
    unknown = set(arguments.peers or ()) - {recipe.name for recipe in recipes}
    if unknown:
        raise SystemExit(f"no such recipe: {', '.join(unknown)}; there are {[r.name for r in recipes]}")
    for recipe in recipes:
        wanted = arguments.peers is None or recipe.name in arguments.peers
        if wanted and not results.find("peers", name=recipe.name, options=list(recipe.options)):
            results.drop("peers", (r for r in results.model["peers"] if r["name"] != recipe.name))
            matrix = importance_matrix(llama, original, arguments)
            results.add("peers", peer_row(llama, original, matrix, recipe, arguments))
    for effort in arguments.effort:
        fewbits_rows(llama, original, results, effort, arguments)


def bf16_gguf(arguments: argparse.Namespace, identity: str) -> Path:
    """The reference as bf16 GGUF, without the metadata by which fewbits says how a file was made.

    That metadata would be carried into llama-quantize's files and make them larger.
    """
    path: Path = arguments.work / f"{arguments.name}-{identity[:12]}.bf16.gguf"
    if not path.exists():
        made = path.with_suffix(".fewbits.gguf")
        fewbits.quantize(arguments.reference, made, format="BF16", effort="fast", force=True)
        keys = [option for key in fewbits.inspect(made).provenance for option in ("--remove-metadata", key)]
        part = path.with_suffix(".part.gguf")
        command = [sys.executable, "-m", "gguf.scripts.gguf_new_metadata", "--force", *keys]
        subprocess.run([*command, str(made), str(part)], check=True, capture_output=True)
        part.rename(path)
        made.unlink()
    return path


def importance_matrix(llama: LlamaCpp, original: Path, arguments: argparse.Namespace) -> Path:
    """llama-imatrix's file for the calibration text."""
    path = original.with_name(f"{original.name}.{file_sha256(arguments.calibration)[:12]}.imatrix.gguf")
    if not path.exists():
        part = path.with_suffix(".part.gguf")
        llama.run(
            "llama-imatrix", "-m", original, "-f", arguments.calibration, "-o", part, "-t", str(llama.threads),
            "-c", str(CONTEXT), "--chunks", str(IMATRIX_CHUNKS),
        )  # fmt: skip
        part.rename(path)
    return path


def peer_row(
    llama: LlamaCpp, original: Path, matrix: Path, recipe: Recipe, arguments: argparse.Namespace
) -> Row:
    """One file of llama-quantize, measured."""
    output = arguments.work / "llama-quantize.gguf"
    began = time.monotonic()
    llama.quantize(original, output, recipe.kind, "--imatrix", str(matrix), *recipe.options)
    seconds = round(time.monotonic() - began, 1)
    row = {"name": recipe.name, "mix": recipe.mix, "options": list(recipe.options), "seconds": seconds}
    row |= {
        "bytes": output.stat().st_size,
        **llama.quality(original, output, arguments.text, CHUNKS, CONTEXT),
    }
    output.unlink()
    return row


def fewbits_rows(
    llama: LlamaCpp, original: Path, results: Results, effort: str, arguments: argparse.Namespace
) -> None:
    """The files of one effort; rows that another version of fewbits made are dropped first."""
    code = fewbits_code()
    text = None if effort == "fast" else arguments.calibration
    text = None if arguments.default_calibration else text
    series = {"effort": effort, "calibration": text.name if text else None}
    results.drop(
        "fewbits",
        (r for r in results.model["fewbits"] if r["fewbits"] == code or not series.items() <= r.items()),
    )
    for size in arguments.sizes.split(","):
        if results.find("fewbits", **series, budget=parse_bytes(size)):
            continue
        cold = results.find("fewbits", **series, cold=True) is None
        row = fewbits_row(llama, original, effort, size, text, cold, code["sources"], arguments)
        results.add("fewbits", {**series, "fewbits": code, **row})


def fewbits_row(
    llama: LlamaCpp,
    original: Path,
    effort: str,
    size: str,
    text: Path | None,
    cold: bool,
    sources: str,
    arguments: argparse.Namespace,
) -> Row:
    """One file of fewbits, measured; `cold`: from an empty cache."""
    output = arguments.work / f"fewbits-{effort}.gguf"
    kind = "default" if text is None else "given"
    cache = arguments.work / f"cache-{arguments.name}-{effort}-{kind}-{sources[:12]}"
    if cold:
        shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir(exist_ok=True)
    command: list[str | Path] = [sys.executable, "-m", "fewbits", "quantize", arguments.reference, output]
    command += ["--size", size, "--effort", effort, "--threads", str(arguments.threads), "--force", "--json"]
    command += ["--calibration", text] if text else []
    run = run_measured(command, {**os.environ, "FEWBITS_CACHE": str(cache)})
    made = json.loads(run.output.splitlines()[-1])
    row = {
        "budget": parse_bytes(size), "bytes": output.stat().st_size, "predicted_kl": made["predicted_kl"],
        **llama.quality(original, output, arguments.text, CHUNKS, CONTEXT), "cold": cold, **run.cost(),
        "formats": made["formats"], "undone": len(made["undone"]), "threads": arguments.threads,
        "processor": processor(),
    }  # fmt: skip
    output.unlink()
    return row


def fewbits_code() -> dict[str, str]:
    """Version of the fewbits that is measured, and the SHA-256 over its Python files and compiled modules."""
    folder = Path(fewbits.__file__).parent
    digest = folder_sha256(folder, ("**/*.py", "**/*.so"))
    # An editable installation keeps what it compiled elsewhere.
    native = find_spec("fewbits._native")
    if native and native.origin and not Path(native.origin).is_relative_to(folder):
        digest = hashlib.sha256(f"{digest} {file_sha256(Path(native.origin))}".encode()).hexdigest()
    return {"version": fewbits.__version__, "sources": digest}


def llama_version(folder: Path) -> str:
    """Which source llama.cpp was built from, where its folder says so."""
    found = sorted(folder.glob("llama_cpp_python-*/"))
    return found[-1].name.replace("_", "-").replace("python-", "python ") if found else "unknown"


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_sha256(folder: Path, patterns: Sequence[str]) -> str:
    """Over the names and bytes of the files that match."""
    files = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    if not files:
        raise SystemExit(f"{folder} has no {' or '.join(patterns)}")
    text = "".join(f"{path.relative_to(folder)} {file_sha256(path)}\n" for path in files)
    return hashlib.sha256(text.encode()).hexdigest()


if __name__ == "__main__":
    main()
