"""Prompt, decoding, loading and memory of the engine and of llama.cpp on the same files, in one run.

    python benchmarks/speed.py FILE.gguf … --llama DIR

Every figure of llama.cpp is its best of `--repack 0|1` and GGML_CPU_TILED_MM=0|1. The two take turns, `--rounds` times,
and the best of each counts, because other work on the machine only ever slows. Speeds are those of `fewbits bench` and
of llama-bench (pp, tg); memory is the most that a process held resident while it read 2,048 tokens, less the file's
size; loading is from opening the file to the logits after one token, the file being in the system's cache.

Rows go to benchmarks/results/speed.json, by file name; docs/speed.md is written from it (`--render` writes it alone).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

from llama_cpp import LlamaCpp, processor

RESULTS = Path(__file__).parent / "results" / "speed.json"
PAGE = Path(__file__).parents[1] / "docs" / "speed.md"
SETTINGS = [(repack, tiled) for repack in (0, 1) for tiled in (0, 1)]
LONG = 2048  # tokens of context for the memory

_LOAD = """
import sys, time
from fewbits.engine.engine import open_engine
started = time.perf_counter()
engine = open_engine(sys.argv[1], threads=int(sys.argv[2]))
engine.step([0], [1], [0])
print(time.perf_counter() - started)
"""
_READ = """
import sys
from fewbits.engine.engine import open_engine
engine = open_engine(sys.argv[1], threads=int(sys.argv[2]), context=int(sys.argv[3]))
engine.step([0] * int(sys.argv[3]), range(int(sys.argv[3])), [int(sys.argv[3]) - 1])
"""


def main() -> None:
    """Measure the files, or only write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", type=Path, nargs="*", help="GGUF files")
    parser.add_argument("--llama", type=Path, help="folder with bin/llama-*, compiled for this processor")
    parser.add_argument("--prompt", type=int, default=512, help="tokens")
    parser.add_argument("--generate", type=int, default=128, help="tokens")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=3, help="in a round")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--render", action="store_true", help="only write the page from the results")
    arguments = parser.parse_args()
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
    if not arguments.render:
        if not arguments.files or arguments.llama is None:
            parser.error("give files and --llama, or --render")
        for path in arguments.files:
            kept["rows"][path.stem] = compared(path, arguments)
            RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    PAGE.write_text(page(kept["rows"]))


def compared(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One file's figures."""
    llama = LlamaCpp(arguments.llama, arguments.threads)
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    for _ in range(arguments.rounds):
        ours.append(fewbits_bench(path, arguments) | {"load": our_loading(path, arguments.threads)})
        for repack, tiled in SETTINGS:
            speeds = llama_bench(llama, path, repack, tiled, arguments)
            theirs.append({"repack": repack, "tiled": tiled, **speeds})
            print(json.dumps(theirs[-1]), flush=True)
    best = max(ours, key=lambda run: run["decode_tokens_per_second"])
    row = {
        "bytes": path.stat().st_size,
        "prompt": arguments.prompt,
        "generate": arguments.generate,
        "threads": arguments.threads,
        "processor": processor(),
        "instruction_set": ours[0]["instruction_set"],
        "read_bandwidth": best["read_bandwidth_bytes_per_second"],
        "bandwidth_share": best["bandwidth_share"],
        "bytes_per_token": best["bytes_per_token"],
        "fewbits": {
            "prompt": max(run["prefill_tokens_per_second"] for run in ours),
            "decode": best["decode_tokens_per_second"],
            "load": min(run["load"] for run in ours),
            "memory": our_memory(path, arguments.threads) - path.stat().st_size,
        },
        "llama.cpp": {
            "prompt": max(run["prompt"] for run in theirs),
            "decode": max(run["decode"] for run in theirs),
            "load": min(llama_loading(llama, path) for _ in range(arguments.rounds)),
            "memory": llama_memory(llama, path) - path.stat().st_size,
            "settings": theirs,
        },
    }
    print(
        json.dumps({path.stem: {k: v for k, v in row.items() if k in ("fewbits", "llama.cpp")}}), flush=True
    )
    return row


def fewbits_bench(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """`fewbits bench --json`."""
    command = [sys.executable, "-m", "fewbits", "bench", str(path), "--json"]
    options = ["--prompt", arguments.prompt, "--generate", arguments.generate, "--threads", arguments.threads]
    options += ["--repetitions", arguments.repetitions]
    done = subprocess.run([*command, *map(str, options)], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def llama_bench(
    llama: LlamaCpp, path: Path, repack: int, tiled: int, arguments: argparse.Namespace
) -> dict[str, float]:
    """Tokens per second of llama-bench with one of its settings."""
    llama.environment["GGML_CPU_TILED_MM"] = str(tiled)
    options = [
        "-t",
        arguments.threads,
        "-p",
        arguments.prompt,
        "-n",
        arguments.generate,
        "-r",
        arguments.repetitions,
    ]
    printed = llama.run("llama-bench", "-m", path, *map(str, options), "--repack", str(repack), "-o", "csv")
    table = printed[printed.index("build_commit") :]
    rows = [row for row in csv.DictReader(StringIO(table)) if (row.get("avg_ts") or "").strip()]
    speeds = {"prompt" if row["n_gen"] == "0" else "decode": float(row["avg_ts"]) for row in rows}
    return {"prompt": speeds["prompt"], "decode": speeds["decode"]}


def our_loading(path: Path, threads: int) -> float:
    """Seconds from opening a file to the first logits, in a fresh process whose imports are done."""
    command = [sys.executable, "-c", _LOAD, str(path), str(threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def llama_loading(llama: LlamaCpp, path: Path) -> float:
    """Seconds that llama-completion says it loaded for and evaluated one token in."""
    options = ["-p", "a", "-n", "1", "-no-cnv", "-t", str(llama.threads)]
    printed = llama.run("llama-completion", "-m", path, *options)
    load, total = (re.findall(rf"{what} time =\s*([\d.]+) ms", printed) for what in ("load", "total"))
    return (float(load[0]) + float(total[0])) / 1000


def our_memory(path: Path, threads: int) -> int:
    """Most that a process of ours held resident, the interpreter included, in bytes."""
    return peak([sys.executable, "-c", _READ, str(path), str(threads), str(LONG)], dict(os.environ))


def llama_memory(llama: LlamaCpp, path: Path) -> int:
    """Most that llama-bench held resident, in bytes, with its defaults."""
    options = ["-t", str(llama.threads), "-p", str(LONG), "-n", "0", "-r", "1"]
    return peak([str(llama.bin / "llama-bench"), "-m", str(path), *options], llama.environment)


def peak(command: list[str], environment: dict[str, str]) -> int:
    """Peak resident memory of a command, in bytes (Linux)."""
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return usage.ru_maxrss * 1024


def page(rows: dict[str, Any]) -> str:
    """docs/speed.md."""
    lines = [
        "# Speed of the engine",
        "Written by `python benchmarks/speed.py FILE.gguf … --llama DIR` from what it measures.",
        "",
        "Tokens per second of `fewbits bench` against llama.cpp's llama-bench on the same file in the same run: a",
        "prompt, and tokens decoded one after another. llama.cpp was compiled for the processor, and its best of",
        "`--repack 0|1` and GGML_CPU_TILED_MM=0|1 counts; the two took turns. Speeds of different files were",
        "measured at different times on a shared machine: ratios within a row are what counts.",
        "",
        "| file | MB | tokens | prompt | llama.cpp | | decode | llama.cpp | | share of read bandwidth |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        cells = [name, f"{row['bytes'] / 1e6:,.1f}", f"{row['prompt']} + {row['generate']}"]
        for what in ("prompt", "decode"):
            ours, theirs = row["fewbits"][what], row["llama.cpp"][what]
            cells += [f"{ours:,.0f}", f"{theirs:,.0f}", f"**x {ours / theirs:.2f}**"]
        share = row["bandwidth_share"]
        lines.append(
            "| " + " | ".join([*cells, f"{share:.0%} of {row['read_bandwidth'] / 1e9:.1f} GB/s"]) + " |"
        )
    lines += [
        "",
        "The share is that of reading a buffer beyond the last cache with as many threads; a file that the cache",
        "holds can exceed it.",
        "",
        f"| file | opening to first logits | llama.cpp | memory beyond the file, {LONG:,} tokens | llama.cpp |",
        "|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        ours, theirs = row["fewbits"], row["llama.cpp"]
        lines.append(
            f"| {name} | {ours['load']:.3f} s | {theirs['load']:.3f} s"
            f" | {ours['memory'] / 1e6:,.0f} MB | {theirs['memory'] / 1e6:,.0f} MB |"
        )
    lines += [
        "",
        "Ours is of a Python process (about 30 MB of it), in which the packed matrices take the file's place. The",
        "file was in the system's cache. llama.cpp's loading is what llama-completion prints.",
        "",
    ]
    said = sorted({f"{row['processor']}; {row['threads']} threads" for row in rows.values()})
    return "\n".join([*lines, "Measured on: " + "; ".join(said) + ".", ""])


if __name__ == "__main__":
    main()
