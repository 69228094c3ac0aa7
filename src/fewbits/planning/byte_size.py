"""Sizes as people write them: 91MB is 91 million bytes, 91MiB is 91 * 2**20."""

from __future__ import annotations

import re

from fewbits.errors import BudgetError

_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _UNITS |= {_letter: 1000**_power, f"{_letter}B": 1000**_power, f"{_letter}IB": 1024**_power}

_PATTERN = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*")


def parse_bytes(text: str | int) -> int:
    """Bytes in ``91MB``, ``1.5GiB`` or a plain number.

    Raises:
        BudgetError: not a size, or not above zero.
    """
    match = _PATTERN.fullmatch(str(text))
    unit = match[2].upper() if match else None
    if match is None or unit not in _UNITS or float(match[1]) * _UNITS[unit] < 1:
        raise BudgetError(
            "not a size", found=repr(text), allowed="a number with B, KB, MB, GB, TB, KiB, MiB, GiB or TiB"
        )
    return int(float(match[1]) * _UNITS[unit])


def format_bytes(count: float) -> str:
    """`count` bytes for a person: ``91.1 MB``."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"
