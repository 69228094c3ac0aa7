"""NNCF by optimum-intel: its weight compression without data, or with AWQ and scale estimation on a calibration text.

Its defaults: 4 bits in all products but the head, which with the embedding has 8 bits.
"""

from __future__ import annotations

import sys

from peer_options import peer_options

# Built for another PyTorch; language models need none of it.
sys.modules["torchvision"] = None
# Texts of the calibration, and characters of each: 128 blocks of about 512 tokens.
SAMPLES, CHARACTERS = 128, 2200


def main() -> None:
    options = peer_options(__doc__, "default", "awq-scale-estimation")

    import torch
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    torch.set_num_threads(options.threads)
    aware = {}
    if options.recipe != "default":
        text = options.calibration.read_text(encoding="utf-8")
        pieces = [text[i * CHARACTERS : (i + 1) * CHARACTERS] for i in range(SAMPLES)]
        aware = {
            "dataset": pieces, "num_samples": SAMPLES, "quant_method": "awq", "scale_estimation": True,
            "tokenizer": str(options.model),
        }  # fmt: skip
    config = OVWeightQuantizationConfig(
        bits=options.bits, sym=options.format.endswith("_SYM"), group_size=options.group or -1, **aware
    )
    model = OVModelForCausalLM.from_pretrained(options.model, export=True, quantization_config=config)
    model.save_pretrained(options.output)


if __name__ == "__main__":
    main()
