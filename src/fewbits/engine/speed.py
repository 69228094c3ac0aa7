"""How fast the engine runs a file on this machine, and how near that is to what memory allows.

Prefill is a prompt of random tokens as one text, decoding random tokens one after another from an empty context: what
llama.cpp's llama-bench measures as pp and tg. The tokens don't matter for the speed, and none is drawn.
"""

from __future__ import annotations

import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fewbits import _native
from fewbits.checkpoint.checkpoint import Checkpoint
from fewbits.checkpoint.file_tensor import FileTensor
from fewbits.checkpoint.gguf import open_gguf
from fewbits.engine.energy import POWERCAP, EnergyMeter, energy_meter
from fewbits.engine.engine import Engine, KvCache, open_engine
from fewbits.errors import EngineError
from fewbits.progress import Progress, Silent

_EXPERT = re.compile(r"\.ffn_(gate|up|down)_exps\.")
# Where the system doesn't say how large its last cache is.
_USUAL_CACHE = 64 << 20
_SMALLEST_BUFFER = 256 << 20
# How often the buffer is read at a time; the fastest counts.
_PASSES = 5


@dataclass(frozen=True)
class Speed:
    """What was measured. Figures per second are medians of the repetitions.

    Attributes:
        path: the file.
        threads: that computed.
        prompt_tokens: of the prompt.
        generated_tokens: that were decoded.
        repetitions: of both; one more before them isn't counted.
        prefill_tokens_per_second: of the prompt.
        decode_tokens_per_second: one token at a time, from an empty context on.
        read_bandwidth_bytes_per_second: at which the same number of threads reads a buffer that no cache holds, before
            and after each repetition of decoding: the bandwidth of shared machines changes from second to second.
        read_bandwidth_buffer_bytes: its size.
        bytes_per_token: weights that decoding reads for each token; keys and values come on top.
        bandwidth_share: `bytes_per_token` times tokens per second over the bandwidth around the same repetition. More
            than 1 is possible for files that a cache holds.
        load_seconds: opening the file, with its bytes in the system's cache or not, as it was found.
        seconds_to_first_token: of the first prompt, right after loading.
        peak_memory_bytes: most that the process held at once, the mapped file's resident pages among it, before the
            bandwidth was measured; None where the system doesn't say.
        engine_memory_bytes: what the engine holds beyond the mapped file.
        instruction_set: of the kernels.
        energy_joules_per_token: what processors and memory used while tokens were decoded, by the machine's own
            counters and whatever else it did meanwhile; None where there is no counter to read.
        prefill_energy_joules_per_token: the same while prompts were read.
        energy_missing: why they are None; empty if they aren't.
    """

    path: str
    threads: int
    prompt_tokens: int
    generated_tokens: int
    repetitions: int
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    read_bandwidth_bytes_per_second: float
    read_bandwidth_buffer_bytes: int
    bytes_per_token: int
    bandwidth_share: float
    load_seconds: float
    seconds_to_first_token: float
    peak_memory_bytes: int | None
    engine_memory_bytes: int
    instruction_set: str
    energy_joules_per_token: float | None
    prefill_energy_joules_per_token: float | None
    energy_missing: str

    def describe(self) -> str:
        """The figures for people, a line each."""
        peak = "unknown" if self.peak_memory_bytes is None else f"{self.peak_memory_bytes / 1e6:,.0f} MB"
        rows = (
            ("prefill", f"{self.prefill_tokens_per_second:,.1f} tokens/s ({self.prompt_tokens} tokens)"),
            ("decode", f"{self.decode_tokens_per_second:,.1f} tokens/s ({self.generated_tokens} tokens)"),
            ("read per token", f"{self.bytes_per_token / 1e6:,.1f} MB of weights"),
            (
                "memory",
                f"{self.read_bandwidth_bytes_per_second / 1e9:,.1f} GB/s read from "
                f"{self.read_bandwidth_buffer_bytes / 1e6:,.0f} MB; decoding uses {self.bandwidth_share:.0%} of it",
            ),
            ("load", f"{self.load_seconds:.3f} s, first token {self.seconds_to_first_token:.3f} s later"),
            (
                "peak memory",
                f"{peak}; the engine holds {self.engine_memory_bytes / 1e6:,.0f} MB beyond the file",
            ),
            ("energy", self._energy()),
            (
                "run",
                f"{self.threads} threads, {self.instruction_set}, median of {self.repetitions} repetitions",
            ),
        )
        return "\n".join(f"{name:<18} {value}" for name, value in rows)

    def _energy(self) -> str:
        if self.energy_joules_per_token is None or self.prefill_energy_joules_per_token is None:
            return f"unknown: {self.energy_missing}"
        return (
            f"{self.energy_joules_per_token:.3g} J for a decoded token, "
            f"{self.prefill_energy_joules_per_token:.3g} J for one of the prompt"
        )


def measure(
    path: str | Path,
    *,
    prompt: int = 512,
    generate: int = 128,
    repetitions: int = 5,
    threads: int | None = None,
    kv_cache: KvCache = "f16",
    progress: Progress | None = None,
    powercap: Path = POWERCAP,
) -> Speed:
    """Time prefill, decoding and reading memory, in this process, by the wall clock.

    Args:
        path: GGUF file.
        prompt: tokens of the prompt.
        generate: tokens to decode.
        repetitions: counted ones.
        threads: None for all cores that this process may use.
        kv_cache: as for `open_engine`.
        progress: told of repetitions done.
        powercap: where the system shows its energy counters.

    Raises:
        CheckpointError: not a GGUF file that can be read.
        EngineError: the engine doesn't know it, or a number is out of range.
    """
    for what, value in (("prompt", prompt), ("generate", generate), ("repetitions", repetitions)):
        if value < 1:
            raise EngineError(f"{what} must be positive", found=value, allowed="1 or more")
    progress = progress or Silent()
    started = time.perf_counter()
    engine = open_engine(path, threads=threads, context=max(prompt, generate), kv_cache=kv_cache)
    loaded = time.perf_counter()
    progress.stage("bench", 2 * (repetitions + 1), "runs")
    text = np.random.default_rng(0).integers(0, engine.vocabulary, max(prompt, generate)).astype(np.int32)
    meter = energy_meter(powercap)
    prefill = _timed(engine, _prompt(engine, text[:prompt]), repetitions, meter, progress)
    memory = _Memory(engine.threads)
    decode = _timed(engine, _decoding(engine, text[:generate]), repetitions, meter, progress, memory.look)
    read = bytes_per_token(open_gguf(Path(path)))
    return Speed(
        path=str(path),
        threads=engine.threads,
        prompt_tokens=prompt,
        generated_tokens=generate,
        repetitions=repetitions,
        prefill_tokens_per_second=prompt / statistics.median(prefill.seconds),
        decode_tokens_per_second=generate / statistics.median(decode.seconds),
        read_bandwidth_bytes_per_second=statistics.median(memory.bandwidths),
        read_bandwidth_buffer_bytes=memory.buffer,
        bytes_per_token=read,
        bandwidth_share=memory.share(read * generate, decode.seconds),
        load_seconds=loaded - started,
        seconds_to_first_token=prefill.first,
        peak_memory_bytes=memory.peak,
        engine_memory_bytes=engine.memory_bytes,
        instruction_set=_native.packed_isas()[0],
        energy_joules_per_token=_per_token(decode.joules, generate * repetitions),
        prefill_energy_joules_per_token=_per_token(prefill.joules, prompt * repetitions),
        energy_missing=meter.missing,
    )


@dataclass(frozen=True)
class _Timed:
    """Seconds of each repetition, the first one, which isn't counted, apart; joules of all counted ones together."""

    first: float
    seconds: list[float]
    joules: float | None


class _Memory:
    """What the machine's memory gives, looked at before and after each counted repetition.

    Attributes:
        buffer: bytes that are read.
        bandwidths: bytes a second, of each look.
        peak: most bytes that the process had held when it looked first, which takes memory itself.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self.buffer = _buffer_bytes()
        self.bandwidths: list[float] = []
        self.peak: int | None = None

    def look(self) -> None:
        """Measure the bandwidth now."""
        if not self.bandwidths:
            self.peak = peak_memory()
        self.bandwidths.append(_native.read_bandwidth(self.buffer, self._threads, _PASSES))

    def share(self, nbytes: int, seconds: Sequence[float]) -> float:
        """The median share of the bandwidth with which repetitions read so many bytes each."""
        around = [(a + b) / 2 for a, b in pairwise(self.bandwidths)]
        return statistics.median(nbytes / s / b for s, b in zip(seconds, around, strict=True))


def _prompt(engine: Engine, text: npt.NDArray[np.int32]) -> Callable[[], object]:
    """Reads a text in one step."""
    return partial(engine.step, np.zeros(len(text), np.int32), text, [len(text) - 1])


def _decoding(engine: Engine, text: npt.NDArray[np.int32]) -> Callable[[], object]:
    """Reads a text token by token."""

    def run() -> None:
        for token in text:
            engine.step([0], [token], [0])

    return run


def _timed(
    engine: Engine,
    work: Callable[[], object],
    repetitions: int,
    meter: EnergyMeter,
    progress: Progress,
    between: Callable[[], object] = lambda: None,
) -> _Timed:
    """Time it, `between` before and after each repetition that counts."""
    seconds: list[float] = []
    joules = 0.0
    for repetition in range(repetitions + 1):
        engine.truncate(0, 0)
        before = meter.read()
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
        progress.advance(1, "")
        if repetition:
            joules += meter.joules_since(before)
        between()
    return _Timed(seconds[0], seconds[1:], joules if meter.counters else None)


def _per_token(joules: float | None, tokens: int) -> float | None:
    return None if joules is None else joules / tokens


def bytes_per_token(checkpoint: Checkpoint) -> int:
    """Bytes of a GGUF file's weights that decoding a token reads.

    Of an embedding that is no head that is a row, and of experts those that are used.
    """
    architecture = checkpoint.metadata.get("general.architecture")
    experts = int(checkpoint.metadata.get(f"{architecture}.expert_count", 0))
    used = int(checkpoint.metadata.get(f"{architecture}.expert_used_count", 0))
    total = 0
    for name, tensor in checkpoint.tensors.items():
        assert isinstance(tensor, FileTensor)  # of a GGUF file
        if name == "token_embd.weight" and "output.weight" in checkpoint.tensors:
            total += tensor.nbytes // tensor.shape[0]  # a row
        elif _EXPERT.search(name) and experts:
            total += tensor.nbytes * used // experts
        elif name != "rope_freqs.weight":
            total += tensor.nbytes
    return total


def peak_memory() -> int | None:
    """Most bytes of memory that this process has held at once, or None where the system doesn't say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else 1024 * peak)


def _buffer_bytes() -> int:
    """Twice the last cache, as the system tells it, and 256 MB at least."""
    try:
        cache = os.sysconf("SC_LEVEL3_CACHE_SIZE")
    except (AttributeError, ValueError, OSError):
        cache = 0
    return max(_SMALLEST_BUFFER, 2 * (cache if cache > 0 else _USUAL_CACHE))
