"""Integers of 4, 3 and 2 bits in groups of 64: fewbits, AutoRound and GPTQModel on the same tokens.

    python benchmarks/integer_peers.py --reference DIR --text TEST.txt --calibration TRAIN.txt --work DIR \
        --auto-round ENV/bin/python --recipes "50 steps" best --gptqmodel ENV/bin/python --effort balanced best
    python benchmarks/integer_peers.py … --measure FOLDER --bits 4 --method "what made it"

Asymmetric, every linear layer of the decoder, the embedding untouched. All see the same 128 blocks of 512 tokens of
the calibration text. The peers run in environments of their own (how to make them: integer_auto_round.py and
integer_gptqmodel.py). The quality is that of llama-perplexity computed with transformers in float32: on 24 chunks of
512 tokens, the second half of each scored. --measure takes any folder that transformers loads, or that a peer wrote.

Rows go to benchmarks/results/integer_peers.json as they are made, and one that is there with the same settings is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fewbits.calibration.text import calibration_tokens
from fewbits.checkpoint.source import open_checkpoint
from fewbits.evaluation.quality import join, position_statistics, quality
from integer_packed import dequantized, is_packed, quantization_config
from kept_results import kept_results
from llama_cpp import processor
from process_tree import Run, run_measured
from quality import RESULTS as QUALITY_RESULTS
from quality import fewbits_code, file_sha256, folder_sha256

RESULTS = QUALITY_RESULTS.with_name("integer_peers.json")
HERE = Path(__file__).parent
GROUP, BLOCKS, BLOCK_TOKENS, CHUNKS, CONTEXT = 64, 128, 512, 24, 512
# AutoRound's recipes as it names them, by steps and learning rate (none: its own choice), and 50 steps of the default.
RECIPES = {"50 steps": (50, None), "light": (50, 5e-3), "default": (200, None), "best": (1000, None)}
# Exponents of GPTQModel's search of scales; 0, its default, is none.
SEARCHES = (0.0, 2.4)
SHOWN = ("kl_mean", "kl_mean_error", "kl_p99", "perplexity", "perplexity_reference", "top1_agreement")

Make = Callable[[Path], Run | None]


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    settings = {
        "reference": folder_sha256(arguments.reference, ("*.safetensors", "config.json", "tokenizer.json")),
        "text": arguments.text.name,
        "text_sha256": file_sha256(arguments.text),
        "calibration": arguments.calibration.name,
        "calibration_sha256": file_sha256(arguments.calibration),
        "blocks": arguments.blocks,
        "block_tokens": BLOCK_TOKENS,
        "chunks": CHUNKS,
        "context": CONTEXT,
        "group": GROUP,
    }
    results = kept_results(arguments.results, settings)
    for bits, method, version, make in jobs(arguments):
        key = (bits, method, version)
        if not arguments.measure and key in [(r["bits"], r["method"], r["version"]) for r in results["rows"]]:
            continue
        kept = method.startswith("fewbits") and statistics_folder(arguments, method).exists()
        row = {"bits": bits, "method": method, "version": version, **made_and_measured(make, arguments)}
        row["kept_statistics"] = kept
        rows = [r for r in results["rows"] if (r["bits"], r["method"]) != (bits, method)]
        results["rows"] = sorted([*rows, row], key=lambda r: (-r["bits"], -r["kl_mean"]))
        arguments.results.write_text(json.dumps(results, indent=1) + "\n")
        print(json.dumps(row), flush=True)


def common_arguments(description: str, results: Path) -> argparse.ArgumentParser:
    """What a comparison with peers is told; one adds its peers."""
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--reference", type=Path, required=True, help="bf16 Hugging Face directory")
    parser.add_argument("--text", type=Path, required=True, help="to measure on")
    parser.add_argument("--calibration", type=Path, required=True, help="to calibrate on")
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made")
    parser.add_argument("--effort", nargs="*", default=[], help="fewbits' efforts")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--results", type=Path, default=results)
    return parser


def parse_arguments() -> argparse.Namespace:
    parser = common_arguments(__doc__, RESULTS)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument(
        "--rounding", action="store_true", help="plain rounding between least and largest, too"
    )
    parser.add_argument("--auto-round", type=Path, metavar="PYTHON", help="of AutoRound's environment")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=["50 steps"], help="of AutoRound")
    parser.add_argument("--gptqmodel", type=Path, metavar="PYTHON", help="of GPTQModel's environment")
    parser.add_argument("--measure", type=Path, metavar="FOLDER", help="measure only what is in it")
    parser.add_argument("--method", help="with --measure: what made it")
    parser.add_argument("--blocks", type=int, default=BLOCKS, help="of calibration, for quick trials")
    arguments = parser.parse_args()
    if arguments.measure and (not arguments.method or len(arguments.bits) > 1):
        parser.error("--measure needs --method and one number of --bits")
    return arguments


def jobs(arguments: argparse.Namespace) -> Iterator[tuple[int, str, str, Make | Path]]:
    """Bits, method, its version, and how to make its folder, for each row asked for."""
    if arguments.measure:
        yield arguments.bits[0], arguments.method, "", arguments.measure
        return
    for bits in arguments.bits:
        if arguments.rounding:
            yield bits, "rounding", "", partial(make_rounded, arguments, bits)
        if arguments.gptqmodel:
            version = package_version(arguments.gptqmodel, "gptqmodel")
            for mse in SEARCHES:
                name = f"GPTQModel, mse={mse:g}" if mse else "GPTQModel"
                options = ["--mse", str(mse)]
                make = partial(
                    make_by_peer, arguments, arguments.gptqmodel, "integer_gptqmodel.py", bits, options
                )
                yield bits, name, version, make
        if arguments.auto_round:
            version = package_version(arguments.auto_round, "auto-round")
            for recipe in arguments.recipes:
                steps, rate = RECIPES[recipe]
                options = ["--steps", str(steps), *(["--lr", str(rate)] if rate else [])]
                make = partial(
                    make_by_peer, arguments, arguments.auto_round, "integer_auto_round.py", bits, options
                )
                yield bits, f"AutoRound, {recipe}", version, make
        for effort in arguments.effort:
            code = fewbits_code()
            version = f"fewbits {code['version']} (sources {code['sources'][:12]})"
            yield bits, f"fewbits {effort}", version, partial(make_by_fewbits, arguments, effort, bits)


def made_and_measured(make: Make | Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Cost, bytes and quality of one folder; what was made is deleted."""
    folder: Path = make if isinstance(make, Path) else arguments.work / "made"
    row: dict[str, Any] = {}
    if not isinstance(make, Path):
        shutil.rmtree(folder, ignore_errors=True)
        row = run.cost() if (run := make(folder)) else {}
    # AutoRound makes a folder of its own choice in the one that it is given.
    model = next(file.parent for file in sorted(folder.rglob("config.json")))
    if quantization_config(model):
        row["bytes"] = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    row |= measured(model, arguments)
    if not isinstance(make, Path):
        shutil.rmtree(folder)
    return {**row, "threads": arguments.threads, "processor": processor()}


def make_by_peer(
    arguments: argparse.Namespace, python: Path, script: str, bits: int, options: list[str], output: Path
) -> Run:
    """A folder made by one of the peers' scripts in its own environment."""
    tokens = arguments.work / "tokens.npy"
    np.save(tokens, calibration_blocks(arguments))
    command = [python, HERE / script, arguments.reference, tokens, output]
    settings = ["--bits", str(bits), "--group", str(GROUP), "--threads", str(arguments.threads)]
    return run_measured([*command, *settings, *options])


def statistics_folder(arguments: argparse.Namespace, method: str) -> Path:
    """Where the statistics of an effort ("fewbits EFFORT") by this code are kept: the first run gathers them."""
    effort = method.split()[1]
    folder: Path = arguments.work / f"cache-integers-{effort}-{fewbits_code()['sources'][:12]}"
    return folder


def make_by_fewbits(arguments: argparse.Namespace, effort: str, bits: int, output: Path) -> Run:
    """A folder of compressed-tensors made by fewbits."""
    cache = statistics_folder(arguments, f"fewbits {effort}")
    command = [sys.executable, "-m", "fewbits", "quantize", arguments.reference, output]
    options = ["--to", "compressed-tensors", "--format", f"INT{bits}_G{GROUP}", "--effort", effort, "--json"]
    options += ["--threads", str(arguments.threads)]
    if effort != "fast":
        options += ["--calibration", str(arguments.calibration)]
    return run_measured([*command, *options], {**os.environ, "FEWBITS_CACHE": str(cache)})


def make_rounded(arguments: argparse.Namespace, bits: int, output: Path) -> None:
    """The reference with every linear layer of the decoder rounded between its groups' extremes, in float32."""
    model = loaded(arguments.reference)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not model.get_output_embeddings():
            groups = module.weight.data.reshape(-1, GROUP)
            low, high = groups.amin(1, keepdim=True).clamp(max=0), groups.amax(1, keepdim=True).clamp(min=0)
            scale = ((high - low) / (2**bits - 1)).half().float().clamp(min=1e-7)
            zero = (-low / scale).round()
            codes = (groups / scale + zero).round().clamp(0, 2**bits - 1)
            model.get_submodule(name).weight.data = ((codes - zero) * scale).reshape(module.weight.shape)
    model.save_pretrained(output)


def calibration_blocks(arguments: argparse.Namespace) -> np.ndarray:
    """The blocks that fewbits takes of the calibration text, its held-out ones with them: int64 [B, S]."""
    tokens = arguments.blocks * BLOCK_TOKENS
    return calibration_tokens(
        open_checkpoint(arguments.reference), arguments.calibration, tokens, BLOCK_TOKENS
    ).blocks


def measured(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """The quality of a folder against the reference, by fewbits' definitions (those of llama-perplexity)."""
    original, model = (
        loaded(arguments.reference),
        loaded(arguments.reference if is_packed(folder) else folder),
    )
    if is_packed(folder):
        replace_weights(model, dequantized(folder))
    tokenizer = AutoTokenizer.from_pretrained(arguments.reference)
    ids = tokenizer(arguments.text.read_text(), add_special_tokens=False, return_tensors="np").input_ids[0]
    first, pieces = CONTEXT // 2, []
    for start in range(0, CHUNKS * CONTEXT, CONTEXT):
        chunk = torch.from_numpy(ids[start : start + CONTEXT].astype(np.int64))
        with torch.inference_mode():
            # The last token is only predicted.
            ours, theirs = (m(chunk[None, :-1]).logits[0, first:].numpy() for m in (model, original))
        pieces.append(position_statistics(theirs, ours, chunk[first + 1 :].numpy()))
    found = asdict(quality(join(pieces)))
    return {key: found[key] for key in SHOWN}


def loaded(folder: Path) -> Any:
    """The model as transformers loads it, in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()


def replace_weights(model: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Put the tensors of a peer's folder in place of the reference's; none may be missing or left over."""
    outcome = model.load_state_dict(tensors, strict=False)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    if set(outcome.missing_keys) - tied or outcome.unexpected_keys:
        raise SystemExit(f"missing: {outcome.missing_keys}; left over: {outcome.unexpected_keys}")


def package_version(python: Path, package: str) -> str:
    """Name and version of a package in another environment."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return f"{package} {done.stdout.strip()}"


if __name__ == "__main__":
    main()
