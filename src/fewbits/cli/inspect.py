"""fewbits inspect."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from fewbits.cli.failure import reported
from fewbits.errors import FewbitsError

if TYPE_CHECKING:
    from rich.table import Table

    from fewbits.inspection import Inspection, TensorSummary

_BLOCK_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_MAX_FALLBACKS = 20


def inspect(
    path: Annotated[str, typer.Argument(help="GGUF file, Hugging Face directory, or hub id.")],
    json_output: Annotated[
        bool, typer.Option("--json", help="One JSON object on standard output, tensor by tensor.")
    ] = False,
    outliers: Annotated[
        bool, typer.Option("--outliers", help="What rounding each map's inputs to 8 bits costs, and why.")
    ] = False,
    calibration: Annotated[
        str | None, typer.Option(help="Text to look for outliers on, as for `fewbits quantize`.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="With --outliers. Default: all cores.")] = None,
) -> None:
    """Show a model's tensors, formats, exact bits per weight, metadata, and how it was made."""
    with reported():
        if outliers:
            _outliers(path, calibration, threads, json_output=json_output)
            return
        if calibration is not None:
            raise FewbitsError("--calibration has no use without --outliers", action="Add --outliers")
        from fewbits.inspection import inspect as inspect_model

        found = inspect_model(path)
        if json_output:
            sys.stdout.write(found.to_json() + "\n")
        else:
            _show(found)


def _outliers(path: str, calibration: str | None, threads: int | None, *, json_output: bool) -> None:
    from fewbits.cli.progress import TerminalProgress
    from fewbits.pipeline.outliers import outliers as find

    with TerminalProgress() as progress:
        found = find(path, calibration, threads=threads, progress=progress)
    sys.stdout.write((json.dumps(found.as_data()) if json_output else found.describe()) + "\n")


def _show(found: Inspection) -> None:
    from rich.console import Console

    # Where no terminal sets a width, lines stay whole for grep and cut.
    width = None if sys.stdout.isatty() else 200
    console = Console(highlight=False, markup=False, emoji=False, width=width)
    console.print(
        f"{found.path}: {found.container}, {_shown(found.architecture) or 'architecture not named'}, "
        f"{found.parameters:,} parameters, {found.file_bytes:,} bytes, "
        f"{found.bits_per_weight:.4f} bits per weight"
    )
    for warning in found.warnings:
        console.print(f"as a source to quantize: {_shown(warning)}")
    console.print(_format_table(found))
    console.print(_tensor_table(found))
    for title, values in (("metadata", found.metadata), ("made by fewbits", found.provenance)):
        rest = {k: v for k, v in values.items() if k != "fewbits.plan"}
        if rest:
            console.print(_value_table(title, rest))
    for fallback in found.fallbacks[:_MAX_FALLBACKS]:
        console.print(
            f"fallback: {fallback.tensor} is {fallback.format}, {fallback.requested} doesn't fit its rows"
        )
    if (more := len(found.fallbacks) - _MAX_FALLBACKS) > 0:
        console.print(f"fallback: {more} more; --json lists them all")


def _format_table(found: Inspection) -> Table:
    table = _table("format", "tensors", "parameters", "bytes", "bits per weight")
    for row in found.formats:
        table.add_row(
            row.format,
            f"{row.tensors}",
            f"{row.parameters:,}",
            f"{row.nbytes:,}",
            f"{row.bits_per_weight:.4f}",
        )
    return table


def _tensor_table(found: Inspection) -> Table:
    """One row per tensor, with tensors that differ in the number of their block alone in one row."""
    table = _table("tensor", "shape", "format", "count", "bits per weight", "bytes")
    groups: dict[tuple[str, tuple[int, ...], str], list[TensorSummary]] = {}
    for tensor in found.tensors:
        key = (_BLOCK_NUMBER.sub("*", tensor.name), tensor.shape, tensor.format)
        groups.setdefault(key, []).append(tensor)
    for (pattern, shape, name), group in groups.items():
        label = group[0].name if len(group) == 1 else pattern
        size = " x ".join(map(str, shape)) or "scalar"
        table.add_row(
            _shown(label), size, name, f"{len(group)}", f"{group[0].bits_per_weight:.4f}",
            f"{sum(t.nbytes for t in group):,}",
        )  # fmt: skip
    return table


def _value_table(title: str, values: dict[str, object]) -> Table:
    table = _table(title, "value")
    for key, value in values.items():
        table.add_row(
            _shown(key), _shown(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        )
    return table


def _table(first: str, *others: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, overflow="fold")
    for name in others:
        numeric = name in ("tensors", "parameters", "count", "bytes", "bits per weight")
        table.add_column(name, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    return table


def _shown(text: str) -> str:
    """Text from a file, safe for a terminal: control characters and broken UTF-8 are escaped."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text
    )
