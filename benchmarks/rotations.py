"""What rotating the residual stream (QuaRot's R1) gains for formats whose activations are rounded as well.

    python benchmarks/rotations.py --reference DIR --text TEST.txt --calibration TRAIN.txt --work DIR \
        --formats MXFP4_PACKED_A4 NVFP4_A4 --width 64

The reference is written once more with rotated hidden states: embedding, readers (with the gains of their norms) and
writers times an orthogonal matrix of random signs and Hadamard blocks, the head untied. It computes the same. Both are
quantized alike, each with channels rescaled and without, and measured against the reference by `fewbits evaluate`,
which rounds activations as the runtime does. For models of Llama's shape: norms without offset before attention and
MLP, no biases of maps that write.

Rows go to benchmarks/results/rotations.json as they are made, and one that is there with the same settings is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import fewbits
from integer_peers import CHUNKS, CONTEXT, SHOWN, common_arguments
from kept_results import kept_results
from process_tree import run_measured
from quality import RESULTS as QUALITY_RESULTS
from quality import fewbits_code, file_sha256, folder_sha256

RESULTS = QUALITY_RESULTS.with_name("rotations.json")
READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
WRITERS = ("self_attn.o_proj", "mlp.down_proj")


def main() -> None:
    parser = common_arguments(__doc__, RESULTS)
    parser.add_argument("--formats", nargs="+", required=True, help="of compressed-tensors")
    parser.add_argument("--width", type=int, default=64, help="of a Hadamard block, a power of two")
    arguments = parser.parse_args()
    settings = {
        "reference": folder_sha256(arguments.reference, ("*.safetensors", "config.json", "tokenizer.json")),
        "text_sha256": file_sha256(arguments.text),
        "calibration_sha256": file_sha256(arguments.calibration),
        "chunks": CHUNKS,
        "context": CONTEXT,
        "width": arguments.width,
    }
    results = kept_results(arguments.results, settings)
    rotated = arguments.work / f"rotated-{arguments.width}"
    write_rotated(arguments.reference, rotated, arguments.width)
    sources = {False: arguments.reference, True: rotated}
    for key in jobs(arguments):
        if any(key.items() <= row.items() for row in results["rows"]):
            continue
        output = arguments.work / "made"
        shutil.rmtree(output, ignore_errors=True)
        quantize(sources[key["rotated"]], output, key, arguments)
        row = {**key, **measured(output, arguments)}
        shutil.rmtree(output)
        results["rows"].append(row)
        arguments.results.write_text(json.dumps(results, indent=1) + "\n")
        print(json.dumps(row), flush=True)


def jobs(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What decides a row: format, effort, whether rotated, whether channels are rescaled, and by which fewbits."""
    code = fewbits_code()
    version = f"{code['version']} (sources {code['sources'][:12]})"
    efforts = arguments.effort or ["balanced"]
    for effort, name, rotated, fold in product(efforts, arguments.formats, (False, True), (True, False)):
        yield {"format": name, "effort": effort, "rotated": rotated, "rescaled": fold, "fewbits": version}


def write_rotated(source: Path, folder: Path, width: int) -> None:
    """The model of a directory with rotated hidden states, in float32."""
    weights = {name: tensor.double() for name, tensor in load_file(source / "model.safetensors").items()}
    config = json.loads((source / "config.json").read_text())
    size = config["hidden_size"]
    signs = torch.randint(0, 2, (size,), generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    turn = signs[:, None] * torch.block_diag(*[hadamard(width)] * (size // width))
    embedding, final = weights.pop("model.embed_tokens.weight"), weights.pop("model.norm.weight")
    head = weights.pop("lm_head.weight", embedding)
    made = {
        "model.embed_tokens.weight": embedding @ turn,
        "lm_head.weight": (head * final) @ turn,
        "model.norm.weight": torch.ones_like(final),
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for norm, readers in READERS.items():
            gain = weights.pop(f"{prefix}{norm}.weight")
            made[f"{prefix}{norm}.weight"] = torch.ones_like(gain)
            for name in readers:
                made[f"{prefix}{name}.weight"] = (weights.pop(f"{prefix}{name}.weight") * gain) @ turn
        for name in WRITERS:
            made[f"{prefix}{name}.weight"] = turn.T @ weights.pop(f"{prefix}{name}.weight")
    if weights:
        raise SystemExit(f"not a model of Llama's shape: it has {', '.join(sorted(weights)[:4])}")
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.float().contiguous() for name, tensor in made.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    config = {key: value for key, value in config.items() if key != "dtype"}
    config |= {"tie_word_embeddings": False, "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    for file in source.iterdir():
        if file.is_file() and file.name not in ("model.safetensors", "config.json"):
            shutil.copy(file, folder / file.name)


def hadamard(width: int) -> Tensor:
    """Sylvester's orthogonal matrix, float64 [width, width]."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < width:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / width**0.5


def quantize(source: Path, output: Path, key: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    """By the command line; statistics are kept beside the work."""
    command = [sys.executable, "-m", "fewbits", "quantize", source, output, "--to", "compressed-tensors"]
    options = ["--format", key["format"], "--effort", key["effort"], "--threads", str(arguments.threads)]
    options += ["--calibration", str(arguments.calibration), *([] if key["rescaled"] else ["--no-fold"])]
    cache = {**os.environ, "FEWBITS_CACHE": str(arguments.work / "cache")}
    run_measured([*command, *options, "--json"], cache)


def measured(output: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Distance from the reference, with activations rounded as the runtime does."""
    found = fewbits.evaluate(
        output, arguments.reference, text=arguments.text, context=CONTEXT, chunks=CHUNKS,
        threads=arguments.threads,
    )  # fmt: skip
    return {key: getattr(found, key) for key in SHOWN}


if __name__ == "__main__":
    main()
