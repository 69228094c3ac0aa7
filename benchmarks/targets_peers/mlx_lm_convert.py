"""mlx-lm's own conversion: affine integers, or MXFP4, in every product and the embedding."""

from __future__ import annotations

from peer_options import peer_options


def main() -> None:
    options = peer_options(__doc__, "affine", "mxfp4")

    from mlx_lm import convert

    chosen = (
        {"q_mode": "mxfp4", "q_group_size": 32, "q_bits": 4}
        if options.recipe == "mxfp4"
        else {"q_group_size": options.group, "q_bits": options.bits}
    )
    convert(str(options.model), str(options.output), quantize=True, **chosen)


if __name__ == "__main__":
    main()
