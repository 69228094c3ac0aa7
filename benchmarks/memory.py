"""Peak memory of quantizing a synthetic checkpoint of 8-billion-parameter shape, and of one a quarter as deep.

    python benchmarks/memory.py --work DIR [--format Q4_0] [--layers 8 32] [--memory 2GB]

The checkpoint is a sparse safetensors file: bf16 shapes of an 8B model (hidden 4096, 14336, 32 heads, 8 KV
heads, vocabulary 128256), its pages zero but for a pattern in the first rows of every tensor. Writes
benchmarks/results/memory.json. The output is deleted.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from llama_cpp import processor

RESULTS = Path(__file__).parent / "results" / "memory.json"
HIDDEN, FFN, HEADS, KV_HEADS, VOCABULARY = 4096, 14336, 32, 8, 128256
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
    "intermediate_size": FFN, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "max_position_embeddings": 8192,
    "vocab_size": VOCABULARY, "tie_word_embeddings": False, "hidden_act": "silu", "torch_dtype": "bfloat16",
}  # fmt: skip


def shapes(layers: int) -> dict[str, list[int]]:
    kv = HIDDEN * KV_HEADS // HEADS
    found = {"model.embed_tokens.weight": [VOCABULARY, HIDDEN]}
    for i in range(layers):
        block = f"model.layers.{i}."
        found |= {
            f"{block}input_layernorm.weight": [HIDDEN],
            f"{block}self_attn.q_proj.weight": [HIDDEN, HIDDEN],
            f"{block}self_attn.k_proj.weight": [kv, HIDDEN],
            f"{block}self_attn.v_proj.weight": [kv, HIDDEN],
            f"{block}self_attn.o_proj.weight": [HIDDEN, HIDDEN],
            f"{block}post_attention_layernorm.weight": [HIDDEN],
            f"{block}mlp.gate_proj.weight": [FFN, HIDDEN],
            f"{block}mlp.up_proj.weight": [FFN, HIDDEN],
            f"{block}mlp.down_proj.weight": [HIDDEN, FFN],
        }
    return found | {"model.norm.weight": [HIDDEN], "lm_head.weight": [VOCABULARY, HIDDEN]}


def safetensors_header(layers: int) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """What a file of these bf16 tensors begins with, and first and last byte of each after it."""
    header, places, offset = {}, dict[str, tuple[int, int]](), 0
    for name, shape in shapes(layers).items():
        places[name] = offset, offset + 2 * int(np.prod(shape))
        offset = places[name][1]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": places[name]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, places


def write_checkpoint(folder: Path, layers: int) -> int:
    """A sparse checkpoint; returns its number of weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": layers}))
    header, places = safetensors_header(layers)
    end = max(stop for _, stop in places.values())
    pattern = np.random.default_rng(0).standard_normal(64 * HIDDEN).astype(np.float32) * 0.02
    data = (pattern.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(header)
        stream.truncate(len(header) + end)
        for first, stop in places.values():
            stream.seek(len(header) + first)
            stream.write(data[: min(len(data), stop - first)])
    return end // 2


def peak(command: list[str]) -> tuple[int, float]:
    """Peak resident bytes and wall seconds of a command."""
    code = (
        "import resource, subprocess, sys; status = subprocess.run(sys.argv[1:]).returncode; "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(status)"
    )
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, *command], stdout=subprocess.PIPE, text=True, check=True
    )
    return int(done.stdout.split()[-1]) * 1024, time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--format", default="Q4_0")
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--memory", default="2GB")
    arguments = parser.parse_args()
    rows = []
    for layers in arguments.layers:
        folder, output = arguments.work / f"synthetic-{layers}", arguments.work / f"synthetic-{layers}.gguf"
        weights = write_checkpoint(folder, layers)
        command = [
            sys.executable,
            "-m",
            "fewbits",
            "quantize",
            str(folder),
            str(output),
            "--format",
            arguments.format,
            "--effort",
            "fast",
            "--memory",
            arguments.memory,
        ]
        memory, seconds = peak(command)
        rows.append(
            {
                "layers": layers,
                "weights": weights,
                "source_bytes": 2 * weights,
                "format": arguments.format,
                "output_bytes": output.stat().st_size,
                "peak_memory_bytes": memory,
                "seconds": round(seconds, 1),
            }
        )
        output.unlink()
        print(json.dumps(rows[-1]), flush=True)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    RESULTS.write_text(
        json.dumps({"processor": processor(), "rows": rows, "harness_bytes": own}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
