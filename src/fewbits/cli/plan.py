"""fewbits plan."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewbits.cli.failure import reported
from fewbits.cli.progress import TerminalProgress
from fewbits.cli.quantize import ALGORITHM, CALIBRATION, FOLD, HARDWARE

if TYPE_CHECKING:
    from fewbits.planning.frontier import FilePoint
    from fewbits.planning.plan import Plan


def plan(
    source: Annotated[str, typer.Argument(help="Hugging Face directory, hub id, or GGUF file.")],
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="The plan file; default: print it.")
    ] = None,
    to: Annotated[str, typer.Option(help="Container the plan is for.")] = "gguf",
    format_name: Annotated[str | None, typer.Option("--format", metavar="NAME", help="One format.")] = None,
    bits: Annotated[float | None, typer.Option(help="Average bits per weight, at most.")] = None,
    size: Annotated[str | None, typer.Option(help="Size of the output, at most, e.g. 91MB.")] = None,
    max_kl: Annotated[
        float | None, typer.Option(help="Predicted KL divergence, at most: the smallest such file.")
    ] = None,
    pin: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN=FORMAT", help="Fix the format of some tensors.")
    ] = None,
    show_frontier: Annotated[
        bool, typer.Option("--frontier", help="For all sizes, the least predicted KL divergence.")
    ] = False,
    points: Annotated[int | None, typer.Option(help="Sizes in the frontier. Default: 24.")] = None,
    effort: Annotated[
        str | None,
        typer.Option(help="As for quantize; balanced and best calibrate. --frontier needs one: balanced."),
    ] = None,
    calibration: Annotated[str | None, typer.Option(help=CALIBRATION)] = None,
    algorithm: Annotated[str | None, typer.Option(metavar="NAME", help=ALGORITHM)] = None,
    fold: Annotated[bool, typer.Option("--fold/--no-fold", help=FOLD)] = True,
    hardware: Annotated[str | None, typer.Option(metavar="NAME", help=HARDWARE)] = None,
    memory: Annotated[str, typer.Option(help="Memory that the run may hold.")] = "4GB",
    threads: Annotated[int | None, typer.Option(help="Default: all cores.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
) -> None:
    """Choose a format for every tensor and write the choice as a file that can be edited."""
    with reported():
        from fewbits.errors import PlanError
        from fewbits.pipeline import plan as planning
        from fewbits.pipeline.job import effort_or_default
        from fewbits.pipeline.quantize import check_output

        goals: dict[str, Any] = {"format": format_name, "bits": bits, "size": size, "max_kl": max_kl}
        _check_goals(goals, points, show_frontier)
        if show_frontier and algorithm is not None:
            raise PlanError("--algorithm has no use with --frontier", action="Leave it out")
        if output is not None:
            check_output(Path(output), force=force)
        options: dict[str, Any] = {
            "to": to, "pins": pin or (), "calibration": calibration, "memory": memory, "threads": threads,
            "seed": seed, "fold": fold, "hardware": hardware,
        }  # fmt: skip
        # Whatever libraries print is no part of the result.
        with redirect_stdout(sys.stderr), TerminalProgress() as progress:
            if show_frontier:
                options |= {"effort": effort or planning.FRONTIER_EFFORT, "progress": progress}
                found = planning.frontier(source, points=points or planning.DEFAULT_POINTS, **options)
                written, shown = _frontier_texts(found)
            else:
                options |= {
                    "effort": effort_or_default(effort),
                    "algorithm": algorithm,
                    "progress": progress,
                    **goals,
                }
                made = planning.plan(source, **options)
                written, shown = made.to_json(), _summary(made, output)
        if output is not None:
            temporary = Path(output).with_name(Path(output).name + ".fewbits-part")
            temporary.write_text(written, encoding="utf-8")
            temporary.replace(output)
        sys.stdout.write((json.dumps(json.loads(written)) if json_output else shown) + "\n")


def _check_goals(goals: dict[str, Any], points: int | None, show_frontier: bool) -> None:
    """Refuse options of a plan for a frontier, and the other way round."""
    from fewbits.errors import PlanError

    given = [f"--{name.replace('_', '-')}" for name, value in goals.items() if value is not None]
    if show_frontier and given:
        raise PlanError(
            "--frontier is for all sizes", found=" and ".join(given), action="Leave out one of the two"
        )
    if points is not None and not show_frontier:
        raise PlanError("--points has no use without --frontier", action="Add --frontier")
    if points is not None and points < 2:
        raise PlanError("--points is out of range", found=points, allowed="2 or more")


def _summary(made: Plan, output: str | None) -> str:
    """What is printed of a plan: itself, or a line on the file that it went to."""
    from fewbits.planning.byte_size import format_bytes

    if output is None:
        return made.to_json().rstrip("\n")
    return (
        f"{output}: {len(made.tensors)} tensors, {format_bytes(made.size)} ({made.size:,} bytes), "
        f"{made.bits_per_weight:.3f} bits per weight"
    )


def _frontier_texts(found: list[FilePoint]) -> tuple[str, str]:
    """A frontier as JSON, one line a point, and as a table."""
    from fewbits.planning.frontier import frontier_table

    lines = ",\n".join(f"  {json.dumps(asdict(point))}" for point in found)
    return f"[\n{lines}\n]\n", frontier_table(found)
