"""The command line that integer_auto_round.py and integer_gptqmodel.py share; imports nothing but the standard library.

They run in a peer's own environment, which need not have fewbits.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def peer_arguments(description: str) -> argparse.ArgumentParser:
    """MODEL TOKENS OUTPUT --bits N [--group N] [--threads N]; a peer adds what only it has."""
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("tokens", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--bits", type=int, required=True)
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    return parser
