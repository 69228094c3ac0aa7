"""Peak memory of a calibrated run on a random model whose blocks have the shapes of one of 8 billion parameters.

    python benchmarks/calibrated_memory.py --tokenizer DIR --calibration TEXT --work DIR [--layers 2] [--memory 8GB]

Blocks are read and calibrated one after another, so that few of them tell what many need: a model of 32 blocks holds no
more at a time. Weights are normal and independent, its tokenizer that of another model. `--characters` cuts the text,
with whose length hidden states grow. Writes benchmarks/results/calibrated_memory.json. The
checkpoint and the output are deleted.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np

from llama_cpp import processor
from memory import CONFIG, safetensors_header
from process_tree import run_measured

RESULTS = Path(__file__).parent / "results" / "calibrated_memory.json"
SPREAD = 0.02
AT_ONCE = 1 << 22


def write_checkpoint(folder: Path, layers: int, tokenizer: Path) -> int:
    """A random checkpoint in bf16, written piece by piece; returns its number of weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": layers}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder / name)
    header, places = safetensors_header(layers)
    rng = np.random.default_rng(0)
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(header)
        for name, (first, stop) in places.items():
            left = (stop - first) // 2
            while left:
                count = min(left, AT_ONCE)
                numbers = rng.standard_normal(count, np.float32) * np.float32(SPREAD)
                if name.endswith("norm.weight"):
                    numbers[:] = 1
                stream.write((numbers.view(np.uint32) >> 16).astype(np.uint16).tobytes())
                left -= count
    return max(stop for _, stop in places.values()) // 2


def main() -> None:
    """Make the model, quantize it, and keep what that took."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokenizer", type=Path, required=True, help="model directory to take it from")
    parser.add_argument("--calibration", type=Path, required=True, help="text")
    parser.add_argument("--characters", type=int, help="of the text; default: all")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--bits", default="4.5")
    parser.add_argument("--effort", default="balanced")
    parser.add_argument("--memory", default="8GB")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    folder, output = arguments.work / "random-8b", arguments.work / "random-8b.gguf"
    shutil.rmtree(folder, ignore_errors=True)
    weights = write_checkpoint(folder, arguments.layers, arguments.tokenizer)
    text = arguments.work / "calibration.txt"
    text.write_text(arguments.calibration.read_text()[: arguments.characters])
    run = run_measured([
        sys.executable, "-m", "fewbits", "quantize", folder, output,
        "--bits", arguments.bits, "--effort", arguments.effort,
        "--calibration", text, "--memory", arguments.memory, "--json",
    ])  # fmt: skip
    row = {
        "layers": arguments.layers, "weights": weights, "source_bytes": 2 * weights, "bits": arguments.bits,
        "effort": arguments.effort, "memory": arguments.memory, "calibration_characters": len(text.read_text()),
        "output_bytes": output.stat().st_size, **run.cost(),
    }  # fmt: skip
    RESULTS.write_text(json.dumps({"processor": processor(), "rows": [row]}, indent=1) + "\n")
    print(json.dumps(row))
    shutil.rmtree(folder)
    output.unlink()


if __name__ == "__main__":
    main()
