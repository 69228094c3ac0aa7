"""AutoRound, reached from here only; run by integer_peers.py with the Python of AutoRound's own environment.

    PYTHON integer_auto_round.py MODEL TOKENS.npy OUTPUT --bits 4 --group 64 --steps 50 [--lr 5e-3]

    python -m venv ENV; ENV/bin/pip install torch==2.13.0; ENV/bin/pip install torch==2.13.0 auto-round==0.16.1

TOKENS.npy holds int64 [B, S], the blocks to calibrate on. OUTPUT becomes a folder that holds the folder of packed
tensors that AutoRound writes. Its recipes are numbers of steps: light 50 with --lr 5e-3, default 200, best 1000.
"""

from __future__ import annotations

import numpy as np

from peer_arguments import peer_arguments


def main() -> None:
    parser = peer_arguments(__doc__)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--lr", type=float, help="default: AutoRound's own, by bits and steps")
    arguments = parser.parse_args()

    import torch
    from auto_round import AutoRound

    torch.set_num_threads(arguments.threads)
    blocks = torch.from_numpy(np.load(arguments.tokens))
    settings = {"lr": arguments.lr} if arguments.lr else {}
    tool = AutoRound(
        str(arguments.model),
        bits=arguments.bits,
        group_size=arguments.group,
        sym=False,
        dataset=list(blocks.split(1)),
        nsamples=len(blocks),
        seqlen=blocks.shape[1],
        iters=arguments.steps,
        device_map="cpu",
        enable_torch_compile=False,
        **settings,
    )
    tool.quantize_and_save(str(arguments.output), format="auto_round")


if __name__ == "__main__":
    main()
