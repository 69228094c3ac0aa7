"""fewbits quantize."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from fewbits.cli.failure import reported
from fewbits.cli.progress import TerminalProgress

CALIBRATION = "Text for balanced and best: a file, JSONL, or hub:OWNER/NAME:CONFIG:SPLIT:COLUMN."
ALGORITHM = "How codes are chosen: rtn, hqq; calibrated: imatrix, gptq, signround. Default: by effort."
FOLD = (
    "Move scales of channels between norms and weights where that makes rounding cost less. No for adapters."
)
TUNE = "Whether effort best trains scales and norms at the end, to predict as the original does. Default: below 4 bits."
KV_CACHE = "Write calibrated scales for a quantized key-value cache too: fp8, or fp8_per_head."
HARDWARE = (
    "What must compute the formats, such as ampere or x86-cpu: nothing else is chosen. See fewbits targets."
)
STATIC_SCALE = "How static scales of activations are chosen: mse, absmax, percentile:99.99, or held-out."
RESUME_HINT = "interrupted; what is done is kept: the same command goes on from here"


def quantize(
    source: Annotated[str, typer.Argument(help="Hugging Face directory, hub id, or GGUF file.")],
    output: Annotated[str, typer.Argument(help="The file (or for compressed-tensors the folder) to make.")],
    to: Annotated[str, typer.Option(help="Container to write.")] = "gguf",
    format_name: Annotated[
        str | None, typer.Option("--format", metavar="NAME", help="One format for all layers, e.g. Q4_K.")
    ] = None,
    bits: Annotated[float | None, typer.Option(help="Average bits per weight, at most.")] = None,
    size: Annotated[str | None, typer.Option(help="Size of the output, at most, e.g. 91MB.")] = None,
    plan: Annotated[str | None, typer.Option(help="A plan file made by `fewbits plan`.")] = None,
    like: Annotated[str | None, typer.Option(help="Make it as this artifact of fewbits was made.")] = None,
    max_kl: Annotated[
        float | None, typer.Option(help="Predicted KL divergence, at most: the smallest such file.")
    ] = None,
    pin: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN=FORMAT", help="Fix the format of some tensors.")
    ] = None,
    effort: Annotated[
        str | None,
        typer.Option(
            help="fast rounds; balanced and best look at the model's inputs. Default: balanced, or $FEWBITS_EFFORT."
        ),
    ] = None,
    calibration: Annotated[str | None, typer.Option(help=CALIBRATION)] = None,
    imatrix: Annotated[
        str | None,
        typer.Option(help="Importance matrix of llama-imatrix or `fewbits imatrix`, to round by."),
    ] = None,
    algorithm: Annotated[str | None, typer.Option(metavar="NAME", help=ALGORITHM)] = None,
    fold: Annotated[bool, typer.Option("--fold/--no-fold", help=FOLD)] = True,
    tune: Annotated[bool | None, typer.Option("--tune/--no-tune", help=TUNE)] = None,
    kv_cache: Annotated[str | None, typer.Option(metavar="NAME", help=KV_CACHE)] = None,
    static_scale: Annotated[str | None, typer.Option(metavar="RULE", help=STATIC_SCALE)] = None,
    hardware: Annotated[str | None, typer.Option(metavar="NAME", help=HARDWARE)] = None,
    memory: Annotated[str, typer.Option(help="Memory that the run may hold.")] = "4GB",
    threads: Annotated[int | None, typer.Option(help="Default: all cores.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Predict memory, disk and time, and try one layer; write nothing."),
    ] = False,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Quantize a model into one file, checked against the source before it gets its name."""
    with reported(interrupted=RESUME_HINT):
        from dataclasses import asdict

        from fewbits.pipeline import dry_run as dry
        from fewbits.pipeline import quantize as main_job

        options: dict[str, Any] = {
            "to": to, "format": format_name, "bits": bits, "size": size, "plan": plan, "like": like,
            "max_kl": max_kl, "pins": pin or (), "effort": effort, "calibration": calibration,
            "imatrix": imatrix, "algorithm": algorithm, "fold": fold, "tune": tune, "kv_cache": kv_cache,
            "hardware": hardware, "static_scale": static_scale, "memory": memory, "threads": threads,
            "seed": seed, "force": force,
        }  # fmt: skip
        with TerminalProgress() as progress:
            if dry_run:
                prediction = dry.dry_run(source, output, **options, progress=progress)
                text, data = prediction.describe(), asdict(prediction)
            else:
                result = main_job.quantize(source, output, **options, progress=progress)
                text, data = result.describe(), asdict(result)
        sys.stdout.write((json.dumps(data) if json_output else text) + "\n")
