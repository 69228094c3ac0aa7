"""Speed of the engine's matrix products: one thread, processor time, the best of several.

    python benchmarks/kernel_speed.py            measure, write benchmarks/results/kernels.json and docs/kernels.md
    python benchmarks/kernel_speed.py --render   write docs/kernels.md from the results there are

Inputs are rounded to 8 bits in the time given. An operation is a product or a sum: 2 x rows x columns x inputs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fewbits import _native
from fewbits.checkpoint.gguf_constants import GGML_TYPES
from fewbits.formats import get_format
from llama_cpp import processor

Row = dict[str, Any]

RESULTS = Path(__file__).parent / "results" / "kernels.json"
PAGE = Path(__file__).parents[1] / "docs" / "kernels.md"
INTEGERS = (
    "Q8_0",
    "Q6_K",
    "Q5_1",
    "Q5_0",
    "Q5_K",
    "Q4_1",
    "Q4_0",
    "Q4_K",
    "IQ4_NL",
    "IQ4_XS",
    "MXFP4",
    "Q3_K",
    "Q2_K",
)
FLOATS = ("F32", "BF16", "F16")

# A matrix that the second cache holds, and bytes that exceed the third.
CACHED = (1024, 1024)
LARGE_BYTES, LARGE_COLUMNS = 400_000_000, 4096
INPUTS = (1, 2, 4, 8, 64, 256)
SECONDS = 0.3

INTRODUCTION = """\
# Speed of the engine's matrix products
Written by `python benchmarks/kernel_speed.py` from what it measures (`--render` writes the page alone).

One thread, processor time, the best of several; inputs are rounded to 8 bits in that time. A matrix of 1024 x 1024
lies in the second cache: GOPS are products and sums, 2 x rows x columns x inputs a call, in billions a second. A matrix
of 400 MB times one input shows how much of the memory's bandwidth is used: beside it, reading as many bytes and doing
nothing else, in turn with the products.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--formats", nargs="+", default=[*INTEGERS, *FLOATS])
    parser.add_argument("--isas", nargs="+", default=[i for i in _native.packed_isas() if i != "portable"])
    arguments = parser.parse_args()
    if not arguments.render:
        rows = [row for name in arguments.formats for row in measure(name, arguments.isas)]
        RESULTS.write_text(json.dumps({"processor": processor(), "rows": rows}, indent=1) + "\n")
    PAGE.write_text(page(json.loads(RESULTS.read_text())))
    print(f"wrote {PAGE.name}")


def measure(name: str, isas: list[str]) -> list[Row]:
    """Products of one type of matrix on each instruction set."""
    rows = []
    cached = _native.PackedMatrix(GGML_TYPES[name].number, blocks(name, *CACHED), CACHED[1])
    for isa in isas:
        speeds = {count: cached_speed(cached, isa, count) for count in INPUTS}
        rows.append({"format": name, "isa": isa, "cached_bytes": cached.nbytes, "gops": speeds})
    row_bytes = GGML_TYPES[name].row_bytes(LARGE_COLUMNS)
    data = blocks(name, LARGE_BYTES // row_bytes // 16 * 16, LARGE_COLUMNS)
    large = _native.PackedMatrix(GGML_TYPES[name].number, data, LARGE_COLUMNS)
    for row in rows:
        row["large_bytes"] = large.nbytes
        row |= large_speed(large, len(data), row["isa"], data)
        print(json.dumps(row), flush=True)
    return rows


def blocks(name: str, rows: int, columns: int) -> npt.NDArray[np.uint8]:
    """A matrix of this type, uint8 [rows, bytes of a row]: 16 rows of random numbers again and again."""
    weight = np.random.default_rng(0).standard_normal((16, columns)).astype(np.float32) * np.float32(0.02)
    if name == "F32":
        data = weight.view(np.uint8)
    elif name == "F16":
        data = weight.astype(np.float16).view(np.uint8)
    elif name == "BF16":
        data = (weight.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    else:
        fmt = get_format(name)
        grouped = weight.reshape(-1, fmt.block)
        params = fmt.fit(grouped)
        data = fmt.pack(fmt.round(grouped, params).reshape(weight.shape), params)["data"]
    return np.tile(data, (rows // 16, 1))


def inputs(count: int, columns: int) -> npt.NDArray[np.float32]:
    """Random inputs, float32 [count, columns]."""
    return np.random.default_rng(1).standard_normal((count, columns)).astype(np.float32)


def cached_speed(matrix: _native.PackedMatrix, isa: str, count: int) -> float:
    """Billions of operations a second."""
    rows, columns = CACHED
    x, out = inputs(count, columns), np.empty((count, rows), np.float32)
    repeats = max(1, 512 // count)
    best, spent = float("inf"), 0.0
    while spent < SECONDS:
        taken = processor_seconds(lambda: matrix.multiply(x, out, isa, repeats))
        best, spent = min(best, taken / repeats), spent + taken
    return round(2 * rows * columns * count / best / 1e9, 1)


def large_speed(matrix: _native.PackedMatrix, rows: int, isa: str, data: npt.NDArray[np.uint8]) -> Row:
    """Billions of bytes a second that a product with one input takes in, and that reading `data` does."""
    x, out = inputs(1, LARGE_COLUMNS), np.empty((1, rows), np.float32)
    product, read = float("inf"), float("inf")
    for _ in range(8):
        product = min(product, processor_seconds(lambda: matrix.multiply(x, out, isa)))
        read = min(read, processor_seconds(data.max))
    return {
        "gb_per_second": round(matrix.nbytes / product / 1e9, 1),
        "read": round(data.nbytes / read / 1e9, 1),
    }


def processor_seconds(run: Callable[[], Any]) -> float:
    """What a call takes of the processor."""
    began = time.process_time()
    run()
    return time.process_time() - began


def page(results: Row) -> str:
    """docs/kernels.md."""
    lines = [INTRODUCTION, f"{results['processor']}.", ""]
    for isa in dict.fromkeys(row["isa"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["isa"] == isa]
        counts = list(rows[0]["gops"])
        lines += [
            f"## {isa}",
            "| type | bits | GOPS, inputs: " + " | ".join(map(str, counts)) + " | GB/s, large | read |",
        ]
        lines.append("|---" * (4 + len(counts)) + "|")
        for row in rows:
            bits = 8 * row["cached_bytes"] / (CACHED[0] * CACHED[1])
            cells = " | ".join(f"{row['gops'][count]:.0f}" for count in counts)
            lines.append(
                f"| {row['format']} | {bits:.2f} | {cells} | {row['gb_per_second']:.1f} | {row['read']:.1f} |"
            )
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
