"""fewbits targets."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from fewbits.cli.failure import reported


def targets(
    hardware: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only what this hardware computes, such as ampere.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """List what can be written, what runs it on which hardware, and what of it is installed here."""
    with reported():
        from fewbits.inventory import describe
        from fewbits.inventory import targets as all_targets

        reports = all_targets(hardware)
        data = json.dumps({"targets": [asdict(report) for report in reports]})
        sys.stdout.write((data if json_output else describe(reports)) + "\n")
