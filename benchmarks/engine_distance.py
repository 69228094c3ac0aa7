"""How far the engine is from a GGUF file's weights in float32, and llama.cpp from the same, by architecture and format.

    python benchmarks/engine_distance.py --reference DIR --wide DIR --text FILE
    python benchmarks/engine_distance.py --render   write docs/engine-distance.md from the results there are

KL divergence, nats per token, of the logits after every token from those that transformers computes in float32 of the
file's dequantized weights. Keys and values are float16 in both runtimes, llama.cpp is the one in the package xllamacpp.

Real models are the reference and its twin with rows of 768 (for blocks of 256), on the beginning of a text. Models of
every architecture are random, 256 wide, with the final norm scaled so that the predictions' mean entropy is that of a
real model.

Rows go to benchmarks/results/engine_distance.json as they are measured; what is there isn't measured again (`--again`).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import fewbits
from fewbits import _native
from fewbits.architectures.interpreter import architecture_of
from fewbits.checkpoint.source import open_checkpoint
from fewbits.engine.engine import open_engine
from fewbits.export.registry import get_exporter
from fewbits.language_model.transformers_model import model_of
from fewbits.runtimes import llama_cpp_driver
from llama_cpp import processor

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))
from tiny_models import TINY_MODELS, TinyModel, build, save_built, transformers_logits  # noqa: E402

Row = dict[str, Any]
Floats = npt.NDArray[np.floating[Any]]

RESULTS = ROOT / "benchmarks" / "results" / "engine_distance.json"
PAGE = ROOT / "docs" / "engine-distance.md"

FLOATS = ("F32", "BF16", "F16")
WIDE = ("Q6_K", "Q5_K", "Q4_K", "IQ4_XS", "Q3_K", "Q2_K")  # blocks of 256
# One of each architecture; the engine doesn't know qwen2_moe's shared expert.
PLAIN = {name for name in TINY_MODELS if "-" not in name} - {"qwen2_moe"}
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 512,
}
# Caps as Gemma 2 has them: within the tests' smaller ones predictions can't be so sure.
WHERE_THERE = {
    "moe_intermediate_size": 256,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
}
TOKENS = 192
ENTROPY = 3.0  # nats; SmolLM2-135M has a perplexity of 21 on the text
CONTEXT = 512
PIECE = 64  # positions whose logits are compared at a time
BOUND = 2e-3


class DefaultLlamaCpp(llama_cpp_driver.LlamaCpp):
    """With keys and values in float16, as llama.cpp keeps them unless told otherwise."""

    def _context(self, tokens: int, context: int | None) -> int:
        params = llama_cpp_driver._context_params(tokens, context)
        params.type_k = params.type_v = llama_cpp_driver.GGML_TYPE_F16
        return int(self.lib.llama_init_from_model(self.model, params))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reference", type=Path, help="directory of the real model")
    parser.add_argument("--wide", type=Path, help="its twin, whose rows are multiples of 256")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--chunks", type=int, default=2, help=f"of {CONTEXT} tokens of the text")
    parser.add_argument("--models", nargs="*", default=[name for name in TINY_MODELS if name in PLAIN])
    parser.add_argument("--formats", nargs="+", default=[*FLOATS, *get_exporter("gguf").formats])
    parser.add_argument("--again", action="store_true", help="measure what is there already")
    parser.add_argument("--render", action="store_true")
    arguments = parser.parse_args()
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
    if not arguments.render:
        for row in measured(arguments, () if arguments.again else kept["rows"]):
            kept["rows"][key(row["model"], row["format"])] = row
            kept["measured_on"] = (
                f"{processor()}; {_native.packed_isas()[0]}; xllamacpp {version('xllamacpp')}"
            )
            RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
            print(json.dumps(row), flush=True)
    PAGE.write_text(page(kept))


def key(model: str, fmt: str) -> str:
    """Of a row."""
    return f"{model} {fmt}"


def measured(arguments: argparse.Namespace, there: Iterable[str]) -> Iterator[Row]:
    """Rows that aren't there."""
    for name in arguments.models:
        formats = [fmt for fmt in arguments.formats if key(name, fmt) not in there]
        if formats:
            yield from random_model(name, formats)
    for directory, wide in ((arguments.reference, False), (arguments.wide, True)):
        formats = [f for f in arguments.formats if (f in WIDE) == wide and key("real", f) not in there]
        if directory is not None and formats:
            yield from real_model(directory, formats, arguments.text, arguments.chunks)


def random_model(name: str, formats: list[str]) -> Iterator[Row]:
    """Rows of a random model of an architecture."""
    tiny = TINY_MODELS[name]
    tokens = np.random.default_rng(7).integers(0, SIZES["vocab_size"], TOKENS).tolist()
    with tempfile.TemporaryDirectory() as folder:
        save_built(tiny, peaked(tiny, tokens), Path(folder) / "hf")
        for fmt in formats:
            yield {"model": name, "format": fmt} | distances(Path(folder) / "hf", fmt, [tokens])


def peaked(tiny: TinyModel, tokens: list[int]) -> Any:
    """The variant, larger, with predictions of a mean entropy of `ENTROPY`."""
    import torch

    model = build(tiny, **SIZES, **{key: value for key, value in WHERE_THERE.items() if key in tiny.config})
    config = model.config.to_dict()
    with torch.no_grad():  # else the blocks would count for nothing beside it
        model.get_input_embeddings().weight /= architecture_of(config).embedding_factor(config)
    weight = model.model.norm.weight
    raised = float(abs(weight.detach().mean()) < 0.5)  # 1 + weight is what multiplies
    first = weight.detach().clone() + raised
    low, high = 1e-3, 1e3
    while high / low > 1.01:
        factor = (low * high) ** 0.5
        with torch.no_grad():
            weight.copy_(first * factor - raised)
            log_p = torch.log_softmax(model(torch.tensor([tokens]), use_cache=False).logits[0].double(), -1)
        low, high = (factor, high) if -(log_p.exp() * log_p).sum(-1).mean() > ENTROPY else (low, factor)
    return model


def real_model(directory: Path, formats: list[str], text: Path, chunks: int) -> Iterator[Row]:
    """Rows of a model that was trained, on the beginning of a text."""
    from fewbits.language_model.text_tokenizer import open_tokenizer

    tokens = open_tokenizer(open_checkpoint(directory)).encode(text.read_text(), markup=False)
    cuts = [tokens[i * CONTEXT : (i + 1) * CONTEXT] for i in range(chunks)]
    for fmt in formats:
        yield {"model": "real", "format": fmt} | distances(directory, fmt, cuts)


def distances(directory: Path, fmt: str, texts: list[list[int]]) -> Row:
    """A model in one format: what both runtimes compute of it, against float32 and each other."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        fewbits.quantize(directory, path, format=fmt, effort="fast")
        found = [compared(path, tokens) for tokens in texts]
    columns = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
    count = len(columns["entropy"])
    means = {name: float(values.mean()) for name, values in columns.items()}
    errors = {f"{name}_error": float(columns[name].std() / count**0.5) for name in ("engine", "llama.cpp")}
    return {"tokens": count} | means | errors


def compared(path: Path, tokens: list[int]) -> dict[str, Floats]:
    """Of every position [T]: KL divergences, whether the likeliest token is float32's, and float32's entropy."""
    exact = log_probabilities(float32_logits(path, tokens))
    engine = log_probabilities(
        open_engine(path, context=len(tokens)).step([0] * len(tokens), tokens, range(len(tokens)))
    )
    with DefaultLlamaCpp(path) as loaded:
        llama = log_probabilities(loaded.logits(tokens, len(tokens)))
    return {
        "engine": divergence(exact, engine),
        "llama.cpp": divergence(exact, llama),
        "between": divergence(llama, engine),
        "engine_top": (exact.argmax(-1) == engine.argmax(-1)).astype(float),
        "llama.cpp_top": (exact.argmax(-1) == llama.argmax(-1)).astype(float),
        "entropy": -(np.exp(exact) * exact).sum(-1),
    }


def float32_logits(path: Path, tokens: list[int]) -> Floats:
    """What transformers computes of the file's weights, [T, V]."""
    return transformers_logits(model_of(open_checkpoint(path)), tokens)


def log_probabilities(logits: Floats) -> Floats:
    """Float64, over the last axis."""
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


def divergence(p: Floats, q: Floats) -> Floats:
    """KL divergence of each position [T]."""
    return np.concatenate(
        [
            (np.exp(p[i : i + PIECE]) * (p[i : i + PIECE] - q[i : i + PIECE])).sum(-1)
            for i in range(0, len(p), PIECE)
        ]
    )


INTRODUCTION = """\
# The engine's distance to float32
Written by `python benchmarks/engine_distance.py --reference DIR --wide DIR --text FILE` from what it measures
(`--render` writes the page alone).

KL divergence in nats per token of the engine's logits from those that transformers computes in float32 of the same
file's dequantized weights, and llama.cpp's from the same. Both keep keys and values in float16 here. Where weights are
quantized both round activations to 8 bits: the engine in blocks of 32, those that nothing after them averages twice;
llama.cpp in blocks of 32 or, for formats with blocks of 256, of 256.
"""


def page(kept: Row) -> str:
    """docs/engine-distance.md."""
    rows = kept["rows"].values()
    lines = [INTRODUCTION, *real_section([row for row in rows if row["model"] == "real"])]
    lines += random_section([row for row in rows if row["model"] != "real"])
    return "\n".join([*lines, f"Measured on: {kept['measured_on']}.", ""])


def real_section(rows: list[Row]) -> list[str]:
    """A line for each format of the real model."""
    if not rows:
        return []
    lines = [
        "## A real model",
        "SmolLM2-135M moved off its grid, formats with blocks of 256 on its twin with rows of 768;",
        f"{rows[0]['tokens']:,} tokens of wikitext-2's test text in chunks of {CONTEXT}, every position.",
        "",
        "| format | engine | llama.cpp | between the two | same top token | llama.cpp |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        pair = [f"{row[who]:.5f} ± {row[who + '_error']:.5f}" for who in ("engine", "llama.cpp")]
        tops = [f"{row[who + '_top']:.1%}" for who in ("engine", "llama.cpp")]
        lines.append(f"| {row['format']} | {' | '.join(pair)} | {row['between']:.5f} | {' | '.join(tops)} |")
    return [*lines, ""]


def random_section(rows: list[Row]) -> list[str]:
    """A line for each architecture, a column for each format, in two tables."""
    formats = list(dict.fromkeys(row["format"] for row in rows))
    wide = [fmt for fmt in formats if fmt in WIDE]
    found = {key(row["model"], row["format"]): row for row in rows}
    lines = [
        "## Every architecture",
        f"Random models of 256 columns and {SIZES['vocab_size']} tokens, {TOKENS} random tokens; the final norm is",
        f"scaled until the mean entropy of the predictions is {ENTROPY} nats, as a real model's is. KL in thousandths",
        "of a nat, engine / llama.cpp. Nothing was learned here that would keep a small error small, so these numbers",
        "tell whether the engine computes what the architecture says, and which of the two is nearer; how far off a",
        "real model is, the table above tells.",
        "",
    ]
    for some in ([fmt for fmt in formats if fmt not in wide], wide):
        if not some:
            continue
        lines += ["| | " + " | ".join(some) + " |", "|---" * (len(some) + 1) + "|"]
        for model in dict.fromkeys(row["model"] for row in rows):
            cells = [found.get(key(model, fmt)) for fmt in some]
            lines.append(f"| {model} | " + " | ".join(cell(row) if row else "" for row in cells) + " |")
        lines.append("")
    return [*lines, summary(rows), ""]


def cell(row: Row) -> str:
    """Engine / llama.cpp, the smaller in bold."""
    ours, theirs = (f"{1e3 * row[who]:.3g}" for who in ("engine", "llama.cpp"))
    return f"**{ours}** / {theirs}" if row["engine"] <= row["llama.cpp"] else f"{ours} / **{theirs}**"


def summary(rows: list[Row]) -> str:
    """In how many cells the engine is nearer, and where it isn't."""
    farther = [row for row in rows if row["engine"] > row["llama.cpp"]]
    ratio = float(np.exp(np.mean([np.log(row["engine"] / row["llama.cpp"]) for row in rows])))
    within = sum(row["engine"] < BOUND for row in rows)
    return (
        f"The engine is nearer in {len(rows) - len(farther)} of {len(rows)} cells, at {ratio:.2f} of llama.cpp's"
        f" distance in the geometric mean; below {BOUND} nats in {within}."
    )


if __name__ == "__main__":
    main()
