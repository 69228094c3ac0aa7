"""docs/quality.md and its plots, from benchmarks/results/quality.json and integer_peers.json."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewbits.pipeline.calibrate import TOKENS
from svg_plot import Point, Series, log_plot

Row = dict[str, Any]

# A peer's file this much larger than the budget still counts as one of that size.
TOLERANCE = 1.001
COLORS = {"fast": "#8c8c8c", "balanced": "#1769aa", "best": "#0b8457"}
PRESET_COLOR, MIX_COLOR = "#c2571a", "#a3455f"

INTRODUCTION = """\
# Quality at a given size
Written by `python benchmarks/quality.py` from what it measures (`--render` writes the page alone).

Every file is measured by llama.cpp's own `llama-perplexity`: KL divergence to the bf16 file's predictions in nats per
token, with its standard error; its 99th percentile; perplexity; and how often the most likely token is the same.
llama-quantize uses the importance matrix that llama-imatrix makes of the text that fewbits calibrates on. Mixes are
`llama-quantize --pure --token-embedding-type E T`, written T + E: one type for every linear layer, another for the
embedding (Q5_0/IQ4_NL: ffn_down and ffn_gate in IQ4_NL).
"""


def write_pages(results: Path, docs: Path) -> None:
    """Write the page and one plot a model into `docs`."""
    for name, text in pages(results).items():
        (docs / name).write_text(text)
        print(f"wrote {name}")


def pages(results: Path) -> dict[str, str]:
    """File name -> text."""
    if not results.exists():
        raise SystemExit(f"{results} isn't there: measure first")
    models = json.loads(results.read_text())["models"]
    found, sections = {}, [INTRODUCTION]
    for name, model in models.items():
        picture = f"quality-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.svg"
        found[picture] = plot(name, model)
        sections.append(model_section(name, model, picture))
    integer = results.with_name("integer_peers.json")
    if integer.exists():
        sections.append(integer_section(json.loads(integer.read_text())))
    return {"quality.md": "\n".join(sections), **found}


def series_name(row: Row) -> str:
    """How a series of fewbits' files is called."""
    return str(row["effort"]) + ("" if row["calibration"] or row["effort"] == "fast" else ", default text")


def model_section(name: str, model: Row, picture: str) -> str:
    """Everything about one model."""
    parts = [f"## {name}", f"![KL divergence against size of {name}]({picture})", ""]
    if model["fewbits"]:
        parts += [*budget_table(model), "", *cost_table(model), ""]
    parts += [*file_table(model), "", footnote(model), ""]
    return "\n".join(parts)


def best_peer(model: Row, size: int) -> Row | None:
    """The peer's file of least KL divergence among those of this size or less."""
    fitting = [row for row in model["peers"] if row["bytes"] <= size * TOLERANCE]
    return min(fitting, key=lambda row: row["kl_mean"], default=None)


def budget_table(model: Row) -> list[str]:
    """For each size: the peer's best file, and fewbits' by effort, with the ratio of their KL divergences."""
    names = list(dict.fromkeys(series_name(row) for row in _by_effort(model["fewbits"])))
    lines = ["| file at most | llama-quantize's best | " + " | ".join(f"fewbits {n}" for n in names) + " |"]
    lines.append("|---" * (2 + len(names)) + "|")
    for budget in sorted({row["budget"] for row in model["fewbits"]}):
        peer = best_peer(model, budget)
        said = f"{peer['name']}: {peer['kl_mean']:.4f}" if peer else "none so small"
        cells = []
        for name in names:
            row = next(
                (r for r in model["fewbits"] if r["budget"] == budget and series_name(r) == name), None
            )
            ratio = f" (x {row['kl_mean'] / peer['kl_mean']:.2f})" if row and peer else ""
            cells.append(f"**{row['kl_mean']:.4f}**{ratio}" if row else "")
        lines.append(f"| {budget / 1e6:.1f} MB | {said} | " + " | ".join(cells) + " |")
    share = f"{100 * (TOLERANCE - 1):.1f}%"
    return [
        *lines,
        "",
        f"KL divergence. A peer's file that is up to {share} larger than the size still counts.",
    ]


def cost_table(model: Row) -> list[str]:
    """What making fewbits' files took, and what was predicted of them."""
    lines = [
        "| fewbits | file at most | started from | time | processor time | peak memory | KL predicted | measured |"
    ]
    lines.append("|---" * 8 + "|")
    for row in _by_effort(model["fewbits"]):
        predicted = f"{row['predicted_kl']:.4f}" if row["predicted_kl"] is not None else "not predicted"
        lines.append(
            f"| {series_name(row)} | {row['budget'] / 1e6:.1f} MB | {_start(row)} "
            f"| {_time(row['seconds'])} | {_time(row['cpu_seconds'])} | {row['peak_memory_bytes'] / 1e9:.2f} GB "
            f"| {predicted} | {row['kl_mean']:.4f} |"
        )
    if (found := model.get("rank_correlation")) is not None:
        lines += ["", f"Rank correlation of predicted and measured KL divergence (Spearman): {found:.3f}."]
    return lines


def file_table(model: Row) -> list[str]:
    """Every file, from the smallest."""
    lines = [
        "| file | bytes | KL divergence | 99% | perplexity | same top token |",
        "|---|---|---|---|---|---|",
    ]
    rows = [(row, f"fewbits {series_name(row)}") for row in model["fewbits"]]
    rows += [(row, row["name"]) for row in model["peers"]]
    for row, name in sorted(rows, key=lambda pair: (pair[0]["bytes"], pair[0]["kl_mean"])):
        shown = f"**{name}**" if "effort" in row else name
        lines.append(
            f"| {shown} | {row['bytes']:,} | {row['kl_mean']:.4f} ± {row['kl_mean_error']:.4f} "
            f"| {row['kl_p99']:.3f} | {row['perplexity']:.2f} | {100 * row['top1_agreement']:.1f}% |"
        )
    base = next((row["perplexity_reference"] for row, _ in rows), None)
    if base is not None:
        lines.append(f"| bf16 | {model['bf16_bytes']:,} | 0 | 0 | {base:.2f} | 100% |")
    return lines


def footnote(model: Row) -> str:
    """What the figures were taken with."""
    machines = sorted({f"{row['processor']}; {row['threads']} threads" for row in model["fewbits"]})
    versions = sorted(
        {f"{r['fewbits']['version']} (sources {r['fewbits']['sources'][:12]})" for r in model["fewbits"]}
    )
    parts = [
        f"Measured on {model['text']}, {model['chunks']} chunks of {model['context']}; calibrated on "
        f"{model['calibration']}, importance matrix of {model['imatrix_chunks']} chunks of {model['context']}; "
        f"{model['llama_cpp']}"
    ]
    parts += [f"fewbits {', '.join(versions)}"] if versions else []
    return "; ".join(parts + machines) + "."


def plot(name: str, model: Row) -> str:
    """KL divergence against size, the peer's files and fewbits'."""
    peers = sorted(model["peers"], key=lambda row: (row["bytes"], row["kl_mean"]))
    frontier = [
        row for i, row in enumerate(peers) if all(row["kl_mean"] < other["kl_mean"] for other in peers[:i])
    ]

    def points(rows: Sequence[Row], named: bool = True) -> list[Point]:
        return [Point(r["bytes"] / 1e6, r["kl_mean"], r.get("name", "") if named else "") for r in rows]

    series = [
        Series("llama-quantize, best at a size", points(frontier, named=False), "#d9a88a", "none", "steps"),
        Series("llama-quantize, presets", points([r for r in peers if not r["mix"]]), PRESET_COLOR, "square"),
        Series("llama-quantize, mixes", points([r for r in peers if r["mix"]]), MIX_COLOR, "diamond"),
    ]
    for effort in dict.fromkeys(series_name(row) for row in _by_effort(model["fewbits"])):
        rows = sorted(
            (r for r in model["fewbits"] if series_name(r) == effort), key=lambda r: int(r["bytes"])
        )
        color = COLORS[rows[0]["effort"]] if rows[0]["calibration"] else "#7a5ea8"
        series.append(Series(f"fewbits {effort}", points(rows), color, "circle", "straight"))
    return log_plot(
        f"{name}: KL divergence to bf16 against size",
        "size of the file, MB",
        "KL divergence, nats per token",
        series,
    )


def integer_section(results: Row) -> str:
    """Integer formats, as benchmarks/integer_peers.py measured them."""
    lines = ["## Integers in groups of 64, asymmetric", "`python benchmarks/integer_peers.py`", ""]
    lines += [
        "Every linear layer of the decoder, the embedding untouched; calibrated on the same "
        f"{results['blocks']} blocks of {results['block_tokens']} tokens of {results['calibration']} or some of them "
        f"(fewbits' best: on {TOKENS['best'] // results['block_tokens']} blocks). "
        "KL divergence computed with transformers in float32, the second half of each chunk scored.",
        "",
        "| bits | by | KL divergence | 99% | perplexity | same top token | time | processor time | peak memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(results["rows"], key=lambda r: (-r["bits"], -r["kl_mean"])):
        cost = " | | "
        if "seconds" in row:
            kept = ", statistics kept" if row.get("kept_statistics") else ""
            cost = (
                f"{_time(row['seconds'])}{kept} | {_time(row['cpu_seconds'])} "
                f"| {row['peak_memory_bytes'] / 1e9:.2f} GB"
            )
        bold = "**" if row["method"].startswith("fewbits") else ""
        lines.append(
            f"| {row['bits']} | {bold}{row['method']}{bold} | {row['kl_mean']:.4f} ± {row['kl_mean_error']:.4f} "
            f"| {row['kl_p99']:.3f} | {row['perplexity']:.2f} | {100 * row['top1_agreement']:.1f}% | {cost} |"
        )
    machines = sorted({row["processor"] for row in results["rows"]})
    tools = sorted({row["version"] for row in results["rows"] if row.get("version")})
    lines += ["", f"Measured on {results['text']}, {results['chunks']} chunks of {results['context']}; "
              f"{'; '.join([*tools, *machines])}.", ""]  # fmt: skip
    return "\n".join(lines)


def _start(row: Row) -> str:
    return "nothing" if row["cold"] or row["effort"] == "fast" else "kept statistics"


def _by_effort(rows: Sequence[Row]) -> list[Row]:
    order = list(COLORS)
    return sorted(rows, key=lambda r: (order.index(r["effort"]), r["calibration"] is None, r["budget"]))


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
