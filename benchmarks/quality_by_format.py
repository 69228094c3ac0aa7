"""Quality and bytes of GGUF formats on a reference model, by llama-perplexity and by fewbits evaluate.

    python benchmarks/quality_by_format.py NAME DIR --llama-cpp DIR --text FILE --work DIR --formats Q8_0 Q4_0 …

Adds the model NAME to benchmarks/results/quality_by_format.json. For each type: the file of `fewbits quantize
--format T --effort fast` and that of `llama-quantize --pure --token-embedding-type T T` without an importance
matrix, from the same bf16 weights, both measured with llama-perplexity; and, for the types named by --evaluate,
fewbits' own evaluation of the first against the same bf16 GGUF.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import fewbits
from llama_cpp import LlamaCpp, processor

RESULTS = Path(__file__).parent / "results" / "quality_by_format.json"
KEYS = ("kl_mean", "kl_mean_error", "kl_p99", "perplexity", "perplexity_reference", "top1_agreement")
# llama-quantize has no --pure MXFP4; its mixture of that name is for one architecture's experts.
NOT_IN_LLAMA_QUANTIZE = ("MXFP4",)


def measure(
    name: str, original: Path, work: Path, llama: LlamaCpp, text: Path, evaluate: bool
) -> dict[str, object]:
    """One row of the table."""
    ours = work / f"fewbits-{name}.gguf"
    made = fewbits.quantize(original, ours, format=name, effort="fast", force=True)
    row: dict[str, object] = {
        "format": name,
        "bytes": made.size,
        "seconds": made.seconds,
        "fallbacks": sorted(set(made.fallbacks.values())),
        "llama_perplexity": llama.quality(original, ours, text),
    }
    if evaluate:
        own = asdict(fewbits.evaluate(ours, original, text=text, context=512, chunks=24))
        row["fewbits_evaluate"] = {key: own[key] for key in KEYS}
    if name not in NOT_IN_LLAMA_QUANTIZE:
        theirs = work / f"llama-{name}.gguf"
        llama.quantize(original, theirs, name, "--pure", "--token-embedding-type", name.lower())
        row["llama_quantize"] = {"bytes": theirs.stat().st_size, **llama.quality(original, theirs, text)}
        theirs.unlink()
    ours.unlink()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", help="what the model is called in the table")
    parser.add_argument("model", type=Path, help="bf16 Hugging Face directory")
    parser.add_argument("--llama-cpp", type=Path, required=True, help="folder with bin/llama-*")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for files that are deleted again")
    parser.add_argument("--formats", nargs="+", required=True)
    parser.add_argument("--evaluate", nargs="*", default=[], help="formats that fewbits evaluates as well")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    original = arguments.work / f"{arguments.name}.bf16.gguf"
    if not original.exists():
        fewbits.quantize(arguments.model, original, format="BF16")
    llama = LlamaCpp(arguments.llama_cpp)
    result = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"models": {}}
    before = result["models"].get(arguments.name, {}).get("rows", [])
    rows = [row for row in before if row["format"] not in arguments.formats]
    for name in arguments.formats:
        row = measure(name, original, arguments.work, llama, arguments.text, name in arguments.evaluate)
        rows.append(row)
        result["models"][arguments.name] = {
            "processor": processor(), "text": arguments.text.name, "original_bytes": original.stat().st_size,
            "rows": sorted(rows, key=lambda row: -int(row["bytes"])),
        }  # fmt: skip
        print(json.dumps(row), flush=True)
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
