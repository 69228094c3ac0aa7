"""Calibration's statistics as an importance matrix that llama.cpp's own quantizer reads.

Its weight of a column is ours: the second moment's diagonal, weighted by the end loss (see `calibration.statistics`)
and not the plain mean square that llama-imatrix gathers. llama-quantize uses weights only to compare columns of a
matrix, so that it needn't know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fewbits.calibration.imatrix import Entry, ImportanceMatrix, write_imatrix
from fewbits.checkpoint.source import open_checkpoint
from fewbits.export.exporter import OutputTensor
from fewbits.export.registry import get_exporter
from fewbits.language_model.packages import require_models_extra
from fewbits.pipeline.job import Settings
from fewbits.pipeline.quantize import check_output
from fewbits.pipeline.statistics_rows import Segment, statistics_rows
from fewbits.progress import Progress, Silent

CONTAINER = "gguf"


@dataclass(frozen=True)
class ImatrixResult:
    """What `imatrix` made.

    Attributes:
        output: the file.
        tensors: entries in it.
        uncovered: tensors that can be quantized and have no entry.
        tokens: of calibration text in the sums.
        calibration: the text.
        warnings: what the user should know.
    """

    output: str
    tensors: int
    uncovered: tuple[str, ...]
    tokens: int
    calibration: str
    warnings: tuple[str, ...]

    def describe(self) -> str:
        """For a person."""
        lines = [f"{self.output}: {self.tensors} tensors, {self.tokens:,} tokens of {self.calibration}"]
        if self.uncovered:
            lines.append(f"  without an entry: {', '.join(self.uncovered)}")
        return "\n".join(lines)


def imatrix(
    source: str | Path,
    output: str | Path,
    *,
    calibration: str | Path | None = None,
    tokens: int | None = None,
    memory: str | int = "4GB",
    seed: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> ImatrixResult:
    """Calibrate, and write an importance matrix for llama-quantize or `quantize(imatrix=…)`.

    Args:
        source: Hugging Face directory, hub id, or GGUF file.
        output: the file to make.
        calibration: text, as for `quantize`.
        tokens: of it; None for as many as effort balanced reads, with which the statistics are shared.
        memory: bytes that the run may hold, e.g. ``"4GB"``.
        seed: of everything random.
        force: replace an existing output.
        progress: receives what is being done.

    Raises:
        FewbitsError: with the cause and the cure; the output isn't touched.
    """
    require_models_extra("calibrating")
    from fewbits.calibration.gather import statistics_for
    from fewbits.calibration.text import calibration_tokens
    from fewbits.pipeline.calibrate import TOKENS

    progress, output = progress or Silent(), Path(output)
    check_output(output, force=force)
    settings = Settings(CONTAINER, "balanced", calibration, memory, None, seed)
    exporter, checkpoint = get_exporter(CONTAINER), open_checkpoint(source)
    tensors = exporter.tensors(checkpoint)
    read = calibration_tokens(checkpoint, calibration, tokens or TOKENS[settings.effort], seed=seed)
    for warning in read.warnings:
        progress.message(warning)
    store = statistics_for(checkpoint, read, settings.memory_bytes, progress)
    segments = statistics_rows(exporter, tensors, exporter.metadata(checkpoint), set(store.names()))
    used = read.counts[0]

    def diagonal(segment: Segment) -> tuple[Entry, float]:
        """Sums and count of one segment, and what its rows matter together."""
        statistics = store.load(segment.parameter)
        sums = used * statistics.importance()
        # A count of 0 says that nothing was seen, which readers take as columns of equal weight.
        count = np.array([max(statistics.tokens, 1) if sums.any() else 0], dtype=np.float32)
        return (sums, count), float(statistics.row_importance[segment.rows].sum(dtype=np.float64))

    entries = {
        tensor.name: _entry(tensor, [diagonal(segment) for segment in segments[tensor.name]])
        for tensor in tensors
        if tensor.quantizable and tensor.name in segments
    }
    length = read.blocks.shape[1]
    write_imatrix(output, ImportanceMatrix(entries, [read.name], used // length, length))
    uncovered = tuple(t.name for t in tensors if t.quantizable and t.name not in entries)
    return ImatrixResult(str(output), len(entries), uncovered, used, read.name, read.warnings)


def _entry(tensor: OutputTensor, parts: Sequence[tuple[Entry, float]]) -> Entry:
    """The entry of a tensor [N, K], or of a stack of experts [E, N, K] that has one part for each.

    Maps that lie one after another in a matrix have the same inputs; their weights are averaged, each by what its
    rows matter.
    """
    sums = np.stack([s for (s, _), _ in parts])
    counts = np.concatenate([c for (_, c), _ in parts])
    if len(tensor.shape) > 2:
        return sums, counts
    shares = np.array([share for _, share in parts], dtype=np.float64)
    mean = (shares / shares.sum() if shares.any() else np.full(len(shares), 1 / len(shares))) @ sums
    return mean.astype(np.float32), counts[:1]
