"""A bf16 GGUF file of a llama with random weights: speed depends on shapes, not on what a model has learnt.

    python benchmarks/random_model.py OUT.gguf [--layers 16] [--tokenizer MODEL.gguf]

With 16 layers it has 1.07 billion parameters: hidden 2048, feed-forward 8192, 32 heads, 8 of them of keys and values,
a vocabulary of 49152 whose embedding is the head too. A tokenizer for it is another file's, such as SmolLM2's:
llama-completion, which speed.py asks how long it loads, doesn't start without.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

HIDDEN, FEED_FORWARD, HEADS, KV_HEADS, VOCABULARY = 2048, 8192, 32, 8, 49152
DEVIATION = np.float32(0.02)


def shapes(layers: int) -> dict[str, tuple[int, int]]:
    """Every matrix by GGUF's name, as [rows, columns]."""
    kv = HIDDEN * KV_HEADS // HEADS
    found = {"token_embd.weight": (VOCABULARY, HIDDEN)}
    for layer in range(layers):
        parts = {
            "attn_q": (HIDDEN, HIDDEN),
            "attn_k": (kv, HIDDEN),
            "attn_v": (kv, HIDDEN),
            "attn_output": (HIDDEN, HIDDEN),
            "ffn_gate": (FEED_FORWARD, HIDDEN),
            "ffn_up": (FEED_FORWARD, HIDDEN),
            "ffn_down": (HIDDEN, FEED_FORWARD),
        }
        found |= {f"blk.{layer}.{name}.weight": shape for name, shape in parts.items()}
    return found


def bfloat16_weights(shape: tuple[int, int], seed: int) -> npt.NDArray[np.uint8]:
    """Normal numbers as bf16, uint8 [rows, 2 * columns]."""
    numbers = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) * DEVIATION
    bits = numbers.view(np.uint32)
    bits += np.uint32(0x8000)
    return (bits >> np.uint32(16)).astype(np.uint16).view(np.uint8)


def add_tokenizer(writer: gguf.GGUFWriter, source: Path | None) -> None:
    """Put another file's tokenizer into the metadata, or none."""
    fields = gguf.GGUFReader(source).fields if source else {}
    found = {name: field for name, field in fields.items() if name.startswith("tokenizer.")}
    for name, field in found.items():
        writer.add_key_value(name, field.contents(), field.types[0], field.types[-1])
    if not found:
        writer.add_tokenizer_model("none")


def write_model(path: Path, layers: int = 16, tokenizer: Path | None = None) -> None:
    """Write the file, a tensor at a time; it appears under its name when it is whole."""
    part = path.with_name(path.name + ".part")
    writer = gguf.GGUFWriter(part, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(8192)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(VOCABULARY)
    add_tokenizer(writer, tokenizer)
    matrices = shapes(layers)
    norms = ["output_norm", *(f"blk.{i}.{kind}_norm" for i in range(layers) for kind in ("attn", "ffn"))]
    for name, shape in matrices.items():
        size = 2 * shape[0] * shape[1]
        writer.add_tensor_info(name, shape, np.dtype(np.float16), size, gguf.GGMLQuantizationType.BF16)
    for name in norms:
        writer.add_tensor_info(f"{name}.weight", (HIDDEN,), np.dtype(np.float32), 4 * HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for seed, shape in enumerate(matrices.values()):
        writer.write_tensor_data(bfloat16_weights(shape, seed))
    for _ in norms:
        writer.write_tensor_data(np.ones(HIDDEN, np.float32))
    writer.close()
    part.rename(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--tokenizer", type=Path, help="a GGUF file with a tokenizer of 49152 tokens")
    arguments = parser.parse_args()
    write_model(arguments.output, arguments.layers, arguments.tokenizer)


if __name__ == "__main__":
    main()
