"""Write the parts of the documentation that state facts about the code or about measurements.

python docs/generate.py            rewrites docs/cli.md and the tables between markers
python docs/generate.py --check    fails when one of them is stale (part of `make lint`)
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import typer.main
from click import Context
from targets_page import targets_page

from fewbits.architectures.table import ARCHITECTURES
from fewbits.cli.main import app

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def command_line() -> str:
    """docs/cli.md: the help text of every command."""
    group = typer.main.get_command(app)
    pages = ["# The command line", "Generated from the program's own help by `make docs`.", ""]
    with Context(group, info_name="fewbits", terminal_width=100, max_content_width=100) as root:
        pages += ["```", group.get_help(root).rstrip(), "```", ""]
        for name, command in group.commands.items():  # type: ignore[attr-defined]
            with Context(
                command, info_name=name, parent=root, terminal_width=100, max_content_width=100
            ) as inner:
                pages += [f"## fewbits {name}", "", "```", command.get_help(inner).rstrip(), "```", ""]
    return "\n".join(pages)


def architecture_page() -> str:
    """docs/architectures.md: every entry of the table of architectures."""
    lines = ["# Architectures", "Generated from `src/fewbits/architectures/table.py` by `make docs`.", ""]
    lines += [
        "Hugging Face directories of these model types can be written to GGUF; each is proven in llama.cpp by"
    ]
    lines += [
        "`tests/export/test_gguf_architectures.py`. GGUF files of any architecture can be quantized again.",
        "",
    ]
    lines += ["| model_type | GGUF architecture | what llama.cpp does otherwise |", "|---|---|---|"]
    lines += [f"| {a.model_type} | {a.gguf} | {'; '.join(a.notes)} |" for a in ARCHITECTURES]
    return "\n".join(lines) + "\n"


def quality_table() -> str:
    """Quality by format on the reference, from benchmarks/results."""
    models = json.loads((RESULTS / "quality_by_format.json").read_text())["models"]
    lines = [
        "| model | format | bytes | KL, `fewbits --effort fast` | KL, `llama-quantize` | same top token | perplexity |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, model in models.items():
        base = model["rows"][0]["llama_perplexity"]["perplexity_reference"]
        lines.append(f"| {name} | bf16 | {model['original_bytes']:,} | 0 | 0 | 100% | {base:.2f} |")
        for row in model["rows"]:
            ours, theirs = row["llama_perplexity"], row.get("llama_quantize")
            peer = f"{theirs['kl_mean']:.4f}" if theirs else "can't write it"
            lines.append(
                f"| | {row['format']} | {row['bytes']:,} | {ours['kl_mean']:.4f} ± {ours['kl_mean_error']:.4f} "
                f"| {peer} | {100 * ours['top1_agreement']:.1f}% | {ours['perplexity']:.2f} |"
            )
    texts = {model["text"] for model in models.values()}
    machines = {model["processor"] for model in models.values()}
    return "\n".join(
        [*lines, "", f"By llama-perplexity on {', '.join(texts)}, 24 chunks of 512; {'; '.join(machines)}."]
    )


def quantizing_speed(speed: dict[str, Any]) -> list[str]:
    """Time of quantizing, fewbits' and llama-quantize's."""
    first = speed["first_run"]
    rows = [
        f"| {row['format']} | {row['fewbits_seconds']} s | {row['llama_quantize_seconds']} s "
        f"| **x {row['speed']}** | "
        f"{row['fewbits_cpu_seconds']} s | {row['llama_quantize_cpu_seconds']} s | "
        f"{row['output_bytes'] / 1e6:,.0f} MB | {row['disk_seconds']} s |"
        for row in speed["rows"]
    ]
    return [
        "## Quantizing against llama-quantize",
        "",
        "`python benchmarks/quantize_speed.py --llama-cpp DIR --work DIR`, effort fast, 2 threads each, from a bf16 "
        f"file of {speed['source_bytes']:,} bytes in the system's cache; the least of "
        f"{', '.join(str(row['repeated']) for row in speed['rows'])} runs each.",
        "",
        "| format | fewbits | llama-quantize | speed | processor: fewbits | llama-quantize | output | disk |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        "Disk: writing as many bytes as the output has and forcing them to the disk, as fewbits does and "
        "llama-quantize doesn't. The first time that fewbits sees a file it takes its sha256 as well: "
        f"{first['seconds']} s in all then, in {first['format']}. {speed['processor']}.",
    ]


def measurements() -> str:
    """What docs/measurements.md says, from benchmarks/results."""
    memory, resume, speed, models = (
        json.loads((RESULTS / f"{name}.json").read_text())
        for name in ("memory", "resume", "quantize_speed", "quality_by_format")
    )
    lines = ["## Memory does not grow with the model", "`python benchmarks/memory.py --work DIR`", ""]
    lines += ["| layers | weights | source | output | peak memory |", "|---|---|---|---|---|"]
    for row in memory["rows"]:
        lines.append(
            f"| {row['layers']} | {row['weights'] / 1e9:.1f} billion | {row['source_bytes'] / 1e9:.1f} GB "
            f"| {row['format']}, {row['output_bytes'] / 1e9:.1f} GB | {row['peak_memory_bytes'] / 1e6:.0f} MB |"
        )
    lines += ["", "## Killed and resumed", "`python benchmarks/resume.py SOURCE --work DIR`", ""]
    lines.append(
        f"Killed {len(resume['kills'])} times at random moments (SIGKILL and SIGINT in turn) of a {resume['format']} "
        f"run that takes {resume['seconds_alone']} s alone, and resumed by the same command each time: "
        f"{'the same bytes' if resume['same_bytes'] else 'OTHER BYTES'} as the run left alone, "
        f"{'nothing' if not resume['files_left'] else ', '.join(resume['files_left'])} left behind."
    )
    lines += ["", *quantizing_speed(speed), ""]
    lines += [
        "## `fewbits evaluate` against llama-perplexity",
        "`python benchmarks/quality_by_format.py`",
        "",
    ]
    lines += [
        "| model | format | KL: fewbits / llama-perplexity | perplexity: fewbits / llama-perplexity |",
        "|---|---|---|---|",
    ]
    for name, model in models["models"].items():
        for row in model["rows"]:
            if own := row.get("fewbits_evaluate"):
                peer = row["llama_perplexity"]
                lines.append(
                    f"| {name} | {row['format']} | {own['kl_mean']:.5f} / {peer['kl_mean']:.5f} "
                    f"({100 * (own['kl_mean'] / peer['kl_mean'] - 1):+.1f}%) | {own['perplexity']:.3f} / "
                    f"{peer['perplexity']:.3f} ({100 * (own['perplexity'] / peer['perplexity'] - 1):+.2f}%) |"
                )
    return "\n".join(lines)


TABLES = {
    ("README.md", "quality"): quality_table,
    ("docs/measurements.md", "measurements"): measurements,
}


def with_table(text: str, marker: str, table: str) -> str:
    """`text` with what stands between the marker's two lines replaced."""
    pattern = re.compile(rf"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"the markers of the table {marker!r} are missing")
    return pattern.sub(lambda match: f"{match[1]}{table}\n{match[2]}", text)


def main() -> None:
    """Rewrite, or check."""
    docs = ROOT / "docs"
    wanted = {docs / "cli.md": command_line(), docs / "architectures.md": architecture_page()}
    wanted[docs / "targets.md"] = targets_page()
    for (file, marker), make in TABLES.items():
        path = ROOT / file
        wanted[path] = with_table(wanted.get(path) or path.read_text(), marker, make())
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv:
        if stale:
            raise SystemExit(f"stale: {', '.join(str(p.relative_to(ROOT)) for p in stale)}; run: make docs")
        return
    for path in stale:
        path.write_text(wanted[path])
        sys.stdout.write(f"wrote {path.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
