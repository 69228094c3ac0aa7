"""GPTQModel, reached from here only; run by integer_peers.py with the Python of GPTQModel's own environment.

    PYTHON integer_gptqmodel.py MODEL TOKENS.npy OUTPUT --bits 4 --group 64 [--mse 2.4]

    python -m venv ENV; ENV/bin/pip install torch==2.13.0; ENV/bin/pip install torch==2.13.0 gptqmodel==7.6.0

TOKENS.npy holds int64 [B, S], the blocks to calibrate on. OUTPUT becomes a folder that holds the packed tensors.
On two cores it needs GPTQMODEL_CPU_WORKERS=2, or it refuses to build its pool of workers.
"""

from __future__ import annotations

import os

import numpy as np

from peer_arguments import peer_arguments


def main() -> None:
    parser = peer_arguments(__doc__)
    parser.add_argument(
        "--mse", type=float, default=0.0, help="exponent of the search of scales; 0: no search"
    )
    arguments = parser.parse_args()
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(arguments.threads))

    import torch
    from gptqmodel import GPTQModel, QuantizeConfig

    torch.set_num_threads(arguments.threads)
    settings = QuantizeConfig(
        bits=arguments.bits,
        group_size=arguments.group,
        sym=False,
        mse=arguments.mse,
        # Its first version stores zero points minus one, where a zero of 0 borrows from its neighbour.
        format="gptq_v2",
        device="cpu",
    )
    model = GPTQModel.load(str(arguments.model), settings)
    blocks = np.load(arguments.tokens).tolist()
    model.quantize([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in blocks], batch_size=1)
    model.save(str(arguments.output))


if __name__ == "__main__":
    main()
