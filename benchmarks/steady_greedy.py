"""Whether 1,000 greedy tokens are the same, and every logit with them, for all numbers of threads and in every company.

    python benchmarks/steady_greedy.py FILE.gguf …

Each continuation is computed by 1, 2 and 3 threads, alone and beside sequences that read and forget at random, with
keys and values in float16 and in 8 and 4 bits. Exits with 1 if any two differ. Rows go to
benchmarks/results/steady_greedy.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from fewbits import _native
from fewbits.checkpoint.gguf import open_gguf
from fewbits.checkpoint.gguf_tokenizer import tokenizer_from_metadata
from llama_cpp import processor

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))
from steady_greedy_runs import COMPANIONS, continuation  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "steady_greedy.json"
PROMPT = "Once upon a time there was a lighthouse keeper who"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--caches", nargs="+", default=["f16", "q8", "q4"])
    arguments = parser.parse_args()
    rows = [row for path in arguments.files for row in checked(path, arguments)]
    RESULTS.write_text(json.dumps({"processor": processor(), "rows": rows}, indent=1) + "\n")
    sys.exit(0 if all(row["same"] for row in rows) else 1)


def checked(path: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each kind of cache."""
    prompt = tokenizer_from_metadata(open_gguf(path).metadata).encode(
        PROMPT, add_special=False, parse_special=False
    )
    rows = []
    for cache in arguments.caches:
        began = time.monotonic()
        found = [
            continuation(
                path, prompt, arguments.count, threads=threads, companions=companions, kv_cache=cache
            )
            for companions in (0, COMPANIONS)
            for threads in arguments.threads
        ]
        rows.append(
            {
                "file": path.name,
                "kv_cache": cache,
                "isa": _native.packed_isas()[0],
                "tokens": len(found[0].ids),
                "distinct_tokens": len(set(found[0].ids)),
                "runs": len(found),
                "same": len(set(found)) == 1,
                "seconds": round(time.monotonic() - began, 1),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


if __name__ == "__main__":
    main()
