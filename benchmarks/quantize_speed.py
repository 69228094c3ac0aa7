"""Wall and processor time of fewbits against llama-quantize on the same bf16 GGUF file and type, 2 threads each.

    python benchmarks/quantize_speed.py --llama-cpp DIR --work DIR [--source MODEL-bf16.gguf]

Without a source a model of 1.07 billion random weights is made in DIR (random_model.py). The two take turns, `--repeat`
times, and the least wall time of each counts, with its processor time: other work only ever slows. The source is in the
system's cache, and the disk is idle when a run starts. fewbits reads a file once more the first time it sees it, for
its sha256; that run is reported apart. So is what the disk gives: writing as many bytes as the output has, and forcing
them to the disk, as fewbits does before it gives an output its name (llama-quantize doesn't).

Writes benchmarks/results/quantize_speed.json, from which docs/generate.py makes the table in docs/measurements.md. Rows
of formats that aren't asked for stay there if they were measured on the same processor and source size.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from llama_cpp import LlamaCpp, processor
from random_model import write_model

RESULTS = Path(__file__).parent / "results" / "quantize_speed.json"
FORMATS = ("Q8_0", "Q4_0", "Q4_K", "Q6_K", "IQ4_XS")
_PIECE = 1 << 22


def timed(output: Path, run: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor seconds of what writes an output, which is removed."""
    output.unlink(missing_ok=True)
    os.sync()
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    run()
    seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def fewbits(source: Path, output: Path, name: str, cache: Path) -> None:
    """Quantize with fewbits; it keeps the sources' hashes in `cache`."""
    command = [sys.executable, "-m", "fewbits", "quantize", str(source), str(output), "--format", name]
    environment = {**os.environ, "FEWBITS_CACHE": str(cache)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # what is installed is compiled once, not at every start
    subprocess.run(
        [*command, "--effort", "fast", "--threads", "2"], check=True, capture_output=True, env=environment
    )


def llama_quantize(llama: LlamaCpp, source: Path, output: Path, name: str) -> None:
    """Quantize every matrix to one type."""
    llama.quantize(source, output, name, "--pure", "--token-embedding-type", name.lower())


def read_through(path: Path) -> None:
    """Bring a file into the system's cache."""
    with path.open("rb", buffering=0) as file:
        while file.read(_PIECE):
            pass


def disk_seconds(path: Path, nbytes: int) -> float:
    """Seconds to write so many bytes and force them to the disk."""
    path.unlink(missing_ok=True)
    os.sync()
    piece, began = os.urandom(_PIECE), time.monotonic()
    with path.open("wb", buffering=0) as file:
        for start in range(0, nbytes, _PIECE):
            file.write(piece[: min(_PIECE, nbytes - start)])
        os.fdatasync(file.fileno())
    seconds = time.monotonic() - began
    path.unlink()
    return seconds


def measure(llama: LlamaCpp, source: Path, work: Path, name: str, repeat: int) -> dict[str, object]:
    """One row of the table."""
    output, ours, theirs, disk = work / "speed.gguf", [], [], []
    nbytes = 0
    for _ in range(repeat):
        read_through(source)
        ours.append(timed(output, lambda: fewbits(source, output, name, work / "cache")))
        nbytes = output.stat().st_size
        theirs.append(timed(output, lambda: llama_quantize(llama, source, output, name)))
        output.unlink()
        disk.append(disk_seconds(output, nbytes))
    (seconds, cpu), (llama_seconds, llama_cpu) = min(ours), min(theirs)
    return {
        "format": name,
        "output_bytes": nbytes,
        "fewbits_seconds": round(seconds, 2),
        "fewbits_cpu_seconds": round(cpu, 2),
        "llama_quantize_seconds": round(llama_seconds, 2),
        "llama_quantize_cpu_seconds": round(llama_cpu, 2),
        "disk_seconds": round(min(disk), 2),
        "speed": round(llama_seconds / seconds, 2),
        "repeated": repeat,
    }


def kept_rows(processor_name: str, source_bytes: int, formats: Sequence[str]) -> list[dict[str, object]]:
    """Rows of other formats, measured before in the same conditions."""
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if (before.get("processor"), before.get("source_bytes")) != (processor_name, source_bytes):
        return []
    return [row for row in before["rows"] if row["format"] not in formats]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--source", type=Path, help="a bf16 GGUF file; default: one made in DIR")
    parser.add_argument("--llama-cpp", type=Path, required=True, help="folder with bin/llama-quantize")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    source = arguments.source or arguments.work / "random-1.07B-bf16.gguf"
    if not source.exists():
        write_model(source)
    llama, output = LlamaCpp(arguments.llama_cpp), arguments.work / "speed.gguf"
    read_through(source)
    new = arguments.work / f"cache-{time.time_ns()}"
    first, _ = timed(output, lambda: fewbits(source, output, arguments.formats[0], new))
    rows = []
    for name in arguments.formats:
        rows.append(measure(llama, source, arguments.work, name, arguments.repeat))
        print(json.dumps(rows[-1]), flush=True)
    found = {
        "processor": processor(),
        "source_bytes": source.stat().st_size,
        "first_run": {"format": arguments.formats[0], "seconds": round(first, 2)},
        "rows": sorted(
            [*rows, *kept_rows(processor(), source.stat().st_size, arguments.formats)],
            key=lambda row: FORMATS.index(str(row["format"])),
        ),
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
