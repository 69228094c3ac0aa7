"""llm-compressor, reached from here only; run by w8a8_peers.py with the Python of llm-compressor's own environment.

    PYTHON w8a8_llm_compressor.py MODEL TOKENS.npy OUTPUT --bits 8 [--smoothing 0.8]

    python -m venv ENV; ENV/bin/pip install torch==2.13.0; ENV/bin/pip install torch==2.13.0 llmcompressor==0.14.0.1

TOKENS.npy holds int64 [B, S], the blocks to calibrate on. OUTPUT becomes a folder in compressed-tensors' formats.
The recipe is that of llm-compressor's example for INT8 weights and activations: SmoothQuant of strength 0.8, then
GPTQ with the scheme W8A8.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from peer_arguments import peer_arguments


def main() -> None:
    parser = peer_arguments(__doc__)
    parser.add_argument("--smoothing", type=float, default=0.8, help="SmoothQuant's exponent")
    arguments = parser.parse_args()

    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(arguments.threads)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype="auto")
    blocks = np.load(arguments.tokens)
    texts = Dataset.from_dict({"input_ids": blocks.tolist(), "attention_mask": np.ones_like(blocks).tolist()})
    recipe = [
        SmoothQuantModifier(smoothing_strength=arguments.smoothing),
        GPTQModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"]),
    ]
    oneshot(
        model=model,
        dataset=texts,
        recipe=recipe,
        max_seq_length=blocks.shape[1],
        num_calibration_samples=len(blocks),
    )
    model.save_pretrained(arguments.output, save_compressed=True)
    for file in arguments.model.glob("tokenizer*.json"):
        shutil.copy(file, arguments.output)
    as_fewbits_reads_it(arguments.output)


def as_fewbits_reads_it(folder: Path) -> None:
    """Scales as float32, which holds them exactly, and no order of columns, which changed nothing that is stored."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    wide = {n: t.float() if n.endswith(".weight_scale") else t for n, t in weights.items()}
    save_file(wide, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    for group in config["quantization_config"]["config_groups"].values():
        group["weights"]["actorder"] = None
    (folder / "config.json").write_text(json.dumps(config, indent=1))


if __name__ == "__main__":
    main()
