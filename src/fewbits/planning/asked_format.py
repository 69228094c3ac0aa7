"""Whether a container holds a format that was asked for by name, and what comes nearest where it doesn't."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from fewbits.errors import FormatError, PlanError
from fewbits.export.exporter import Exporter
from fewbits.export.registry import exporter_names, get_exporter
from fewbits.formats import get_format
from fewbits.planning.allocation import gaussian_error, refusing

# Other containers that are named at most.
_NAMED = 3


def require_held(name: str, exporter: Exporter, option: str = "") -> None:
    """Refuse a format that the container can't hold, or the hardware doesn't compute.

    Args:
        name: as typed.
        exporter: of the container, perhaps restricted to some hardware.
        option: what is typed before a format, for the advice.

    Raises:
        FormatError: no such format, with the nearest name that the container knows.
        PlanError: not in this container; with the nearest that is, and where it belongs.
    """
    asked = name.upper()
    known = (*exporter.formats, *exporter.plain_formats)
    if asked in known:
        return
    try:
        wanted = get_format(asked).name
    except FormatError as error:
        near = get_close_matches(asked, known, 1, 0.5)
        raise FormatError(
            f"{exporter.name} has no such format", found=repr(name), allowed=", ".join(known),
            action=f"Perhaps {near[0]}" if near else "",
        ) from error  # fmt: skip
    if wanted in known:
        return
    raise PlanError(
        f"{refusing(exporter)} this format", found=wanted, allowed=", ".join(known),
        action=f"Use {option}{nearest(wanted, exporter.formats)}, the nearest that works{_elsewhere(wanted, exporter)}",
    )  # fmt: skip


def _elsewhere(wanted: str, exporter: Exporter) -> str:
    """Where the format belongs, as the advice goes on."""
    if exporter.hardware:
        return "; fewbits targets says what runs where"
    others = [n for n in exporter_names() if wanted in get_exporter(n).formats]
    return f", or --to {' or '.join(others[:_NAMED])}" if others else ""


def nearest(wanted: str, formats: Sequence[str]) -> str:
    """The one of some formats that is the most like another: in bits, then in error."""
    bits, error = get_format(wanted).bits, gaussian_error(wanted)
    return min(formats, key=lambda f: (abs(get_format(f).bits - bits), abs(gaussian_error(f) - error), f))
