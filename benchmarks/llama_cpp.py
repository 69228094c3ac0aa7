"""llama.cpp's own programs, reached from here only: where they are, how they are called, what they print.

Build them with any recipe that leaves `llama-quantize` and `llama-perplexity` in DIR/bin; the figures in this
repository were taken with the source that the PyPI package llama-cpp-python 0.3.36 carries, compiled for the
processor at hand.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path


class LlamaCpp:
    """The programs in `folder`/bin."""

    def __init__(self, folder: Path, threads: int = 2) -> None:
        self.bin = folder / "bin"
        self.threads = threads
        self.environment = {**os.environ, "LD_LIBRARY_PATH": str(self.bin)}

    def run(self, program: str, *arguments: str | Path) -> str:
        """Standard output and error of one program, which must succeed."""
        command = [str(self.bin / program), *map(str, arguments)]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.stdout + done.stderr

    def quantize(self, source: Path, output: Path, kind: str, *options: str) -> str:
        """Run llama-quantize; `kind` is its name of the type, e.g. Q4_K."""
        return self.run("llama-quantize", *options, source, output, kind, str(self.threads))

    def quality(
        self, original: Path, quantized: Path, text: Path, chunks: int = 24, context: int = 512
    ) -> dict[str, float]:
        """KL divergence, perplexity and top-1 agreement by llama-perplexity; keeps the logits."""
        logits = original.with_name(f"{original.name}.{text.stem}.{chunks}x{context}.kld")
        common = (
            "-f", text, "-t", str(self.threads), "-c", str(context), "--chunks", str(chunks),
            "--kl-divergence-base", logits,
        )  # fmt: skip
        if not logits.exists():
            self.run("llama-perplexity", "-m", original, *common)
        printed = self.run("llama-perplexity", "-m", quantized, *common, "--kl-divergence")
        patterns = {
            "kl_mean": r"Mean\s+KLD:\s+(-?[\d.]+)",
            "kl_mean_error": r"Mean\s+KLD:\s+-?[\d.]+\s+±\s+([\d.]+)",
            "kl_p99": r"99.0%\s+KLD:\s+(-?[\d.]+)",
            "perplexity": r"Mean PPL\(Q\)\s+:\s+([\d.]+)",
            "perplexity_reference": r"Mean PPL\(base\)\s+:\s+([\d.]+)",
            "top1_agreement": r"Same top p:\s+([\d.]+)",
        }
        found = {name: float(re.findall(pattern, printed)[0]) for name, pattern in patterns.items()}
        found["top1_agreement"] /= 100
        return found


def processor() -> str:
    """The processor's name and what of its vector instructions matters here."""
    text = Path("/proc/cpuinfo").read_text()
    name = re.search(r"model name\s*:\s*(.*)", text)
    family = re.search(r"cpu family\s*:\s*(\d+)", text)
    model = re.search(r"model\s*:\s*(\d+)", text)
    flags = [f for f in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8") if f in text]
    said = f"{name[1]} (family {family[1]}, model {model[1]})" if name and family and model else "unknown"
    return f"{said}; {os.cpu_count()} cores; {' '.join(flags)}"
