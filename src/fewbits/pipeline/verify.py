"""Reading a written file back before it gets its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fewbits.algorithms.registry import needs_statistics
from fewbits.errors import FewbitsError, VerificationError
from fewbits.export.exporter import Exporter, OutputTensor
from fewbits.pipeline.job import Job
from fewbits.pipeline.journal import Journal, part_path
from fewbits.planning.plan import TensorChoice
from fewbits.progress import Progress

# Rows of each tensor that are decoded and compared with the source.
SAMPLE_ROWS = 8
# Calibrated algorithms move weights that the model's inputs hardly use by more than their size, at 2 bits: 1.3 times
# their squares were seen in 8 rows.
CALIBRATED = 4.0


def verify_output(job: Job, journal: Journal, progress: Progress, threads: int) -> None:
    """Check the bytes against what was written, and the numbers against the source.

    Every byte is read from the disk again and its checksum compared; every tensor is opened by the reader
    that users' files go through, and a sample of its rows decoded: it must be nearer to the source than zeros
    are (not much farther, where calibration chose the codes), and exact where the format is.

    Raises:
        VerificationError: naming the tensor and what differs. The output doesn't get its name.
    """
    path = part_path(journal.output)
    sizes = {name: sum(r.nbytes for r in parts.values()) for name, parts in job.layout.parts.items()}
    progress.stage("verifying", sum(sizes.values()), "B")
    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(journal.checksums, job.layout.parts.values())
        for name, checksums in zip(job.layout.parts, found, strict=True):
            if checksums != journal.finished[name]:
                pool.shutdown(cancel_futures=True)
                raise _failed(path, name, "other bytes on disk than were written")
            progress.advance(sizes[name], name)
    _compare_headers(path, job)
    compare_with_source(job.exporter, path, job.tensors, job.plan.tensors, tuned=job.tuned)


def _compare_headers(path: Path, job: Job) -> None:
    """Every byte that isn't a tensor's, and every place, as the container's own parser finds them."""
    found = job.exporter.read_back(path)
    for name, file in job.layout.files.items():
        if found.files.get(name) != file:
            raise _failed(path, name or "its header", "other bytes on disk than were written")
    for name, parts in job.layout.parts.items():
        meant = {part: (r.file, r.offset, r.nbytes) for part, r in parts.items()}
        read = {part: (r.file, r.offset, r.nbytes) for part, r in found.parts.get(name, {}).items()}
        if meant != read:
            raise _failed(path, name, "another place in the file than was meant")


def compare_with_source(
    exporter: Exporter,
    path: Path,
    tensors: Sequence[OutputTensor],
    choices: Mapping[str, TensorChoice],
    *,
    tuned: bool = False,
) -> None:
    """Open a written file as any other and compare a sample of every tensor's rows with the source.

    Norms and biases of a `tuned` model are others than the source's on purpose.

    Raises:
        VerificationError: naming the tensor and what differs.
    """
    try:
        written = exporter.written(path)
    except FewbitsError as error:
        raise _failed(path, "its header", str(error)) from error
    for tensor in tensors:
        found = written.get(tensor.name)
        choice = choices[tensor.name]
        if found is None or found.shape != tensor.shape or found.dtype != choice.format:
            what = "nothing" if found is None else f"{found.dtype} {found.shape}"
            raise _failed(path, tensor.name, f"{what} instead of {choice.format} {tensor.shape}")
        rows = min(SAMPLE_ROWS, tensor.source.matrix[0])
        meant, stored = (t.rows(0, rows).astype(np.float64) for t in (tensor.source, found))
        distance, energy = float(((meant - stored) ** 2).sum()), float((meant**2).sum())
        exact = choice.format == "F32" and not (tuned and len(tensor.shape) == 1)
        limit = 0.0 if exact else energy
        if needs_statistics(choice.algorithm):
            limit *= CALIBRATED
        if not distance <= limit:
            raise _failed(
                path, tensor.name, f"a squared error of {distance:.3g} against weights of {energy:.3g}"
            )


def _failed(path: Path, name: str, found: str) -> VerificationError:
    return VerificationError(
        f"{path} failed its check at {name}", found=found,
        action="The disk or memory may be faulty, or this is a bug in fewbits; the output has no name yet",
    )  # fmt: skip
