"""The command line: wires one file per command, and nothing else."""

from __future__ import annotations

import gc
import sys

import typer

from fewbits.cli.bench import bench
from fewbits.cli.chat import chat
from fewbits.cli.evaluate import evaluate
from fewbits.cli.export import export
from fewbits.cli.generate import generate
from fewbits.cli.imatrix import imatrix
from fewbits.cli.inspect import inspect
from fewbits.cli.plan import plan
from fewbits.cli.quantize import quantize
from fewbits.cli.serve import serve
from fewbits.cli.targets import targets
from fewbits.cli.verify import verify
from fewbits.version import __version__

app = typer.Typer(
    name="fewbits",
    help="Few bits, same model: quantize a language model to a budget, and prove what it cost.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: rich's takes longer to import than all else
    pretty_exceptions_enable=False,
)
app.command()(quantize)
app.command()(export)
app.command()(plan)
app.command()(imatrix)
app.command()(inspect)
app.command()(evaluate)
app.command()(verify)
app.command()(targets)
app.command()(generate)
app.command()(chat)
app.command()(bench)
app.command()(serve)


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"fewbits {__version__}\n")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Show it."),
) -> None:
    """Few bits, same model: quantize a language model to a budget, and prove what it cost."""


def main() -> None:
    """Entry point of the `fewbits` command."""
    try:
        app()
    finally:
        gc.freeze()  # the process is at its end: looking for circles in all that there is takes 60 ms
