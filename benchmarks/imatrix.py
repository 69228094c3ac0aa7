"""Importance matrices between fewbits and llama.cpp, in both directions, on a real model.

    python benchmarks/imatrix.py --reference DIR --llama DIR --text TEST.txt --calibration TRAIN.txt --work DIR \
        --types Q4_0 IQ4_NL

llama-imatrix and `fewbits imatrix` each make a matrix of the same text and as many tokens; llama-quantize and `fewbits
quantize --effort fast --imatrix` each make a file of each type without one and with either. llama-perplexity measures
all of them. Rows go to benchmarks/results/imatrix.json, and a table to standard output.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fewbits
from llama_cpp import LlamaCpp, processor
from quality import CHUNKS, CONTEXT, IMATRIX_CHUNKS, RESULTS, bf16_gguf, folder_sha256, importance_matrix

OUTPUT = RESULTS.with_name("imatrix.json")


def main() -> None:
    arguments = parse_arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    llama = LlamaCpp(arguments.llama, arguments.threads)
    identity = folder_sha256(arguments.reference, ("*.safetensors", "config.json", "tokenizer.json"))
    original = bf16_gguf(arguments, identity)
    matrices = {
        "none": None,
        "llama-imatrix": importance_matrix(llama, original, arguments),
        "fewbits imatrix": our_matrix(arguments),
    }
    rows = []
    for kind in arguments.types:
        for name, matrix in matrices.items():
            for by, output in files(llama, original, kind, matrix, arguments):
                found = llama.quality(original, output, arguments.text, CHUNKS, CONTEXT)
                rows.append({"type": kind, "matrix": name, "by": by, "bytes": output.stat().st_size, **found})
                output.unlink()
    OUTPUT.write_text(json.dumps({"processor": processor(), "rows": rows}, indent=1) + "\n")
    print(table(rows))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--name", default="SmolLM2-135M", help="what the model is called in names of files")
    for name in ("reference", "llama", "text", "calibration", "work"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--types", nargs="+", default=["Q4_0", "IQ4_NL"])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    return parser.parse_args()


def our_matrix(arguments: argparse.Namespace) -> Path:
    """`fewbits imatrix` of the reference, for as many tokens as llama-imatrix sees."""
    path: Path = arguments.work / "fewbits.imatrix.gguf"
    command = [sys.executable, "-m", "fewbits", "imatrix", arguments.reference, path, "--force"]
    options = ["--calibration", arguments.calibration, "--tokens", str(IMATRIX_CHUNKS * CONTEXT)]
    subprocess.run([*map(str, [*command, *options])], check=True)
    return path


def files(
    llama: LlamaCpp, original: Path, kind: str, matrix: Path | None, arguments: argparse.Namespace
) -> Iterator[tuple[str, Path]]:
    """The file of each quantizer, every matrix in one type, so that sizes are equal."""
    output: Path = arguments.work / "imatrix-trial.gguf"
    given = ["--imatrix", str(matrix)] if matrix else []
    llama.quantize(original, output, kind, "--pure", *given)
    yield "llama-quantize --pure", output
    fewbits.quantize(original, output, format=kind, effort="fast", imatrix=matrix, force=True)
    yield "fewbits --effort fast", output


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| type | by | matrix | bytes | KL divergence |", "|---|---|---|---|---|"]
    lines += [
        f"| {r['type']} | {r['by']} | {r['matrix']} | {r['bytes']:,} "
        f"| {r['kl_mean']:.4f} ± {r['kl_mean_error']:.4f} |"
        for r in sorted(rows, key=lambda r: (r["type"], r["by"], r["matrix"]))
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
