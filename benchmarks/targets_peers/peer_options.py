"""The command line of every script here; imports nothing but the standard library."""

from __future__ import annotations

import argparse
import re
from pathlib import Path


def peer_options(description: str, *recipes: str) -> argparse.Namespace:
    """MODEL OUTPUT --format NAME [--recipe NAME] --calibration TEXT [--threads N].

    Args:
        description: the script's docstring.
        recipes: that it knows, the default first.

    Returns:
        What was given, and `bits` and `group` as the format's name says (0 for none).
    """
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("model", type=Path, help="Hugging Face directory")
    parser.add_argument("output", type=Path, help="folder to be made")
    parser.add_argument("--format", required=True, help="fewbits' name of what it makes")
    parser.add_argument("--recipe", choices=recipes, default=recipes[0])
    parser.add_argument(
        "--calibration", type=Path, required=True, help="text, for recipes that look at inputs"
    )
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    numbers = re.search(r"(\d)(?:_G(\d+))?", options.format)
    options.bits, options.group = (int(n or 0) for n in numbers.groups()) if numbers else (0, 0)
    return options
