"""8-bit integer weights and activations: fewbits and llm-compressor's SmoothQuant with GPTQ, on the same tokens.

    python benchmarks/w8a8_peers.py --reference DIR --text TEST.txt --calibration TRAIN.txt --work DIR \
        --llm-compressor ENV/bin/python --effort balanced

Weights have a scale per row, activations one per token, chosen when it is seen; every linear layer of the decoder, the
embedding untouched. Both see the same 64 blocks of 512 tokens of the calibration text; llm-compressor runs in an
environment of its own (how to make it: w8a8_llm_compressor.py), with the recipe of its own example. What each writes is
measured by `fewbits evaluate`, which rounds activations as vLLM's kernel does: KL divergence to the reference on 24
chunks of 512 tokens, the second half of each scored.

Rows go to benchmarks/results/w8a8_peers.json as they are made, and one that is there with the same settings is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import fewbits
from fewbits.calibration.text import calibration_tokens
from fewbits.checkpoint.source import open_checkpoint
from integer_peers import BLOCK_TOKENS, CHUNKS, CONTEXT, SHOWN, common_arguments, package_version
from kept_results import kept_results
from llama_cpp import processor
from process_tree import Run, run_measured
from quality import RESULTS as QUALITY_RESULTS
from quality import fewbits_code, file_sha256, folder_sha256

RESULTS = QUALITY_RESULTS.with_name("w8a8_peers.json")
HERE = Path(__file__).parent
FORMAT, BLOCKS, SMOOTHING = "INT8_CHANNEL_SYM", 64, 0.8


def main() -> None:
    arguments = parse_arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    settings = {
        "reference": folder_sha256(arguments.reference, ("*.safetensors", "config.json", "tokenizer.json")),
        "text": arguments.text.name,
        "text_sha256": file_sha256(arguments.text),
        "calibration": arguments.calibration.name,
        "calibration_sha256": file_sha256(arguments.calibration),
        "format": FORMAT,
        "blocks": BLOCKS,
        "block_tokens": BLOCK_TOKENS,
        "chunks": CHUNKS,
        "context": CONTEXT,
    }
    results = kept_results(arguments.results, settings)
    for method, version, make in jobs(arguments):
        if (method, version) in [(r["method"], r["version"]) for r in results["rows"]]:
            continue
        row = {"method": method, "version": version, **made_and_measured(make, arguments)}
        rows = [r for r in results["rows"] if r["method"] != method]
        results["rows"] = sorted([*rows, row], key=lambda r: -r["kl_mean"])
        arguments.results.write_text(json.dumps(results, indent=1) + "\n")
        print(json.dumps(row), flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = common_arguments(__doc__, RESULTS)
    parser.add_argument("--llm-compressor", type=Path, metavar="PYTHON", help="of its environment")
    return parser.parse_args()


def jobs(arguments: argparse.Namespace) -> Iterator[tuple[str, str, Callable[[Path], Run]]]:
    """Method, its version, and how to make its folder, for each row asked for."""
    if arguments.llm_compressor:
        version = package_version(arguments.llm_compressor, "llmcompressor")
        yield f"SmoothQuant {SMOOTHING}, GPTQ", version, partial(make_by_peer, arguments)
    for effort in arguments.effort:
        code = fewbits_code()
        version = f"fewbits {code['version']} (sources {code['sources'][:12]})"
        yield f"fewbits {effort}", version, partial(make_by_fewbits, arguments, effort)


def made_and_measured(make: Callable[[Path], Run], arguments: argparse.Namespace) -> dict[str, Any]:
    """Cost, bytes and quality of one folder; what was made is deleted."""
    folder = arguments.work / "made"
    shutil.rmtree(folder, ignore_errors=True)
    row: dict[str, Any] = make(folder).cost()
    row["bytes"] = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    found = fewbits.evaluate(
        folder,
        arguments.reference,
        text=arguments.text,
        context=CONTEXT,
        chunks=CHUNKS,
        threads=arguments.threads,
    )
    if found.activations != "runtime":
        raise SystemExit(f"{folder} doesn't say that activations are rounded")
    shutil.rmtree(folder)
    shown = {key: getattr(found, key) for key in SHOWN}
    return {**row, **shown, "threads": arguments.threads, "processor": processor()}


def make_by_peer(arguments: argparse.Namespace, output: Path) -> Run:
    """A folder made by llm-compressor in its own environment."""
    tokens = arguments.work / "tokens.npy"
    checkpoint = open_checkpoint(arguments.reference)
    np.save(
        tokens,
        calibration_tokens(checkpoint, arguments.calibration, BLOCKS * BLOCK_TOKENS, BLOCK_TOKENS).blocks,
    )
    command = [arguments.llm_compressor, HERE / "w8a8_llm_compressor.py", arguments.reference, tokens, output]
    settings = ["--bits", "8", "--threads", str(arguments.threads), "--smoothing", str(SMOOTHING)]
    return run_measured([*command, *settings])


def make_by_fewbits(arguments: argparse.Namespace, effort: str, output: Path) -> Run:
    """A folder of compressed-tensors made by fewbits from nothing."""
    cache = arguments.work / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    command = [sys.executable, "-m", "fewbits", "quantize", arguments.reference, output]
    options = ["--to", "compressed-tensors", "--format", FORMAT, "--effort", effort, "--json"]
    options += ["--threads", str(arguments.threads), "--calibration", str(arguments.calibration)]
    return run_measured([*command, *options], {**os.environ, "FEWBITS_CACHE": str(cache)})


if __name__ == "__main__":
    main()
