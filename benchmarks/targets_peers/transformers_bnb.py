"""bitsandbytes by transformers: NF4 with float32 block scales, or INT8, rounded as it loads."""

from __future__ import annotations

from peer_options import peer_options


def main() -> None:
    options = peer_options(__doc__, "default")

    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    torch.set_num_threads(options.threads)
    config = (
        BitsAndBytesConfig(load_in_8bit=True)
        if options.format == "BNB_INT8"
        else BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    )
    model = AutoModelForCausalLM.from_pretrained(
        options.model, quantization_config=config, dtype=torch.bfloat16
    )
    model.save_pretrained(options.output)


if __name__ == "__main__":
    main()
