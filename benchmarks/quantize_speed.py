"""Wall time of fewbits against llama-quantize on the same bf16 GGUF and type, both with 2 threads.

    python benchmarks/quantize_speed.py MODEL-bf16.gguf --llama-cpp DIR --work DIR

Writes benchmarks/results/quantize_speed.json. Each is run `--repeat` times in turn; the least time counts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from llama_cpp import LlamaCpp, processor

RESULTS = Path(__file__).parent / "results" / "quantize_speed.json"
FORMATS = ("Q8_0", "Q4_0", "Q4_K", "Q6_K", "IQ4_XS")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--llama-cpp", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--formats", nargs="+", default=FORMATS)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    llama = LlamaCpp(arguments.llama_cpp)
    output = arguments.work / "speed.gguf"
    rows = []
    for name in arguments.formats:
        ours, theirs = [], []
        for _ in range(arguments.repeat):
            output.unlink(missing_ok=True)
            began = time.monotonic()
            command = [sys.executable, "-m", "fewbits", "quantize", str(arguments.source), str(output)]
            options = ["--format", name, "--effort", "fast", "--threads", "2"]
            subprocess.run([*command, *options], check=True, capture_output=True)
            ours.append(time.monotonic() - began)
            began = time.monotonic()
            llama.quantize(arguments.source, output, name, "--pure", "--token-embedding-type", name.lower())
            theirs.append(time.monotonic() - began)
        rows.append(
            {
                "format": name,
                "fewbits_seconds": round(min(ours), 2),
                "llama_quantize_seconds": round(min(theirs), 2),
                "ratio": round(min(ours) / min(theirs), 2),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    output.unlink(missing_ok=True)
    RESULTS.write_text(
        json.dumps(
            {"processor": processor(), "source_bytes": arguments.source.stat().st_size, "rows": rows},
            indent=1,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
