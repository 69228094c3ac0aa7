"""Gathering the statistics of every linear map of a model, block by block.

1. Forward: the hidden states at every boundary between blocks go to files.
2. Head: random errors of the logits, as large as the model's own predictions are unsure, have a gradient at the
   last boundary.
3. Backward, last block first: the forward pass of a block is done again, now with gradients, and every
   linear map adds up its input's second moment, each token weighted by the gradient at the map's output.
4. Embedding: from the gradient at the first boundary.

One block's weights are in memory at a time, and if the sums of its maps don't fit beside them, some maps
are left for another pass over the same block. Arithmetic is float32, but for large products where
the processor has short ones (`products`); what lies in files between the passes is bfloat16.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewbits.calibration.blocks import BlockwiseModel
from fewbits.calibration.boundaries import Boundaries
from fewbits.calibration.cache_statistics import CacheObservation, cache_statistics
from fewbits.calibration.conversion import (
    blend_starved,
    embedding_statistics,
    head_statistics,
    save_block,
    tied,
)
from fewbits.calibration.find_folds import block_folds, head_fold
from fewbits.calibration.fold import Fold
from fewbits.calibration.head import Head
from fewbits.calibration.linear_maps import LinearMap, Observation, linear_maps, mirrored
from fewbits.calibration.products import Products
from fewbits.calibration.store import FORMAT_VERSION, StatisticsStore
from fewbits.calibration.text import CalibrationTokens
from fewbits.checkpoint.checkpoint import Checkpoint
from fewbits.checkpoint.content_hash import cache_directory, content_hash
from fewbits.errors import OutputError
from fewbits.language_model.skeleton import build_skeleton
from fewbits.progress import Progress

# Tokens that go through a block together: enough for matrix products to run at full speed.
_TOKENS_AT_ONCE = 2048
# Interpreter, PyTorch, and a block's activations for so many tokens.
_OVERHEAD = 900_000_000


@dataclass(frozen=True)
class _Run:
    model: BlockwiseModel
    tokens: CalibrationTokens
    boundaries: Boundaries
    store: StatisticsStore
    memory: int | None
    progress: Progress

    @property
    def last(self) -> int:
        """Number of blocks, and the boundary after the last."""
        return len(self.model.blocks)

    def batches(self) -> Iterator[tuple[int, int, bool]]:
        """Ranges of sequences that go through together, and whether they are held out."""
        count, length = self.tokens.blocks.shape
        step = max(1, _TOKENS_AT_ONCE // length)
        for first, end, held_out in (
            (0, count - self.tokens.held_out, False),
            (count - self.tokens.held_out, count, True),
        ):
            for start in range(first, end, step):
                yield start, min(start + step, end), held_out


def gather(
    checkpoint: Checkpoint,
    tokens: CalibrationTokens,
    store: StatisticsStore,
    *,
    memory: int | None,
    progress: Progress,
) -> None:
    """Fill a store with the statistics of all linear maps, head and embedding of a model.

    Goes on where an earlier run with the same tokens was killed; the result has the same bytes then.

    Args:
        checkpoint: the model.
        tokens: what it reads.
        store: where the statistics go.
        memory: bytes to stay within, as far as one block allows; None for no limit.
        progress: told of finished blocks.

    Raises:
        CalibrationError: a model whose blocks can't be found.
        EvaluationError, ArchitectureError: transformers can't build the model.
        OutputError: the disk is too small, or the folder can't be written.
        ResumeError: the store belongs to another calibration.
    """
    if store.complete:
        return
    store.begin({"tokens": tokens.sha256, "name": tokens.name, "version": FORMAT_VERSION})
    model = BlockwiseModel(build_skeleton(checkpoint))
    width = model.skeleton.tensors[model.skeleton.embedding].shape[-1]
    shape = (*tokens.blocks.shape, width)
    boundaries = Boundaries(store.folder / "state", (shape[0], shape[1], shape[2]))
    run = _Run(model, tokens, boundaries, store, memory, progress)
    _require_disk(run)
    _forward(run)
    _head(run)
    _backward(run)
    _embedding(run)
    store.finish()


def _require_disk(run: _Run) -> None:
    maps = [
        m for b, name in zip(run.model.blocks, run.model.names, strict=True) for m in linear_maps(b, name)
    ]
    width = run.boundaries.shape[2]
    needed = sum(m.bytes for m in maps) + 2 * 8 * width**2 + (run.last + 3) * run.boundaries.nbytes
    present = sum(path.stat().st_size for path in run.store.folder.rglob("*") if path.is_file())
    free = shutil.disk_usage(run.store.folder).free
    if needed - present > free:
        raise OutputError(
            f"the disk is too small for the statistics in {run.store.folder}",
            found=f"{free / 1e9:.1f} GB free",
            allowed=f"at least {(needed - present) / 1e9:.1f} GB",
            action="Free some space, or set FEWBITS_CACHE to a folder on a larger disk",
        )


def _forward(run: _Run) -> None:
    """Write the hidden states before each block and after the last."""
    boundaries, model = run.boundaries, run.model
    run.progress.stage("calibrate: forward", run.last, "blocks")
    if any(boundaries.has("gradient", index) for index in range(run.last + 1)):
        run.progress.advance(run.last)
        return
    ids = torch.from_numpy(run.tokens.blocks)
    if not boundaries.has("hidden", 0):
        with model.embedding(), boundaries.writing("hidden", 0) as append:
            for start, stop, _ in run.batches():
                append(model.embed(ids[start:stop]))
    for index in range(run.last):
        if not boundaries.has("hidden", index + 1):
            writing = boundaries.writing("hidden", index + 1)
            with model.block(index), writing as append, torch.no_grad(), Products():
                for start, stop, _ in run.batches():
                    append(model.run(index, boundaries.read("hidden", index, start, stop)))
        run.progress.advance(1, model.names[index])


def _head(run: _Run) -> None:
    """Write the gradient after the last block, and the head's sums."""
    boundaries, model = run.boundaries, run.model
    if any(boundaries.has("gradient", index) for index in range(run.last + 1)):
        return
    fold = head_fold(model, boundaries.shape[2])
    run.store.save_folds(model.skeleton.head, [fold.as_data()] if fold else [])
    head = Head(model, run.tokens.seed)
    with model.final_norm() as norm, boundaries.writing("gradient", run.last) as append:
        for start, stop, held_out in run.batches():
            hidden = boundaries.read("hidden", run.last, start, stop).requires_grad_()
            normed = norm(hidden)
            with torch.no_grad():
                flat = head.gradient(normed.detach().flatten(0, 1), held_out)
            (gradient,) = torch.autograd.grad(normed, hidden, flat.reshape(normed.shape))
            append(gradient)
        _save_head(boundaries.folder, head)
    boundaries.remove("hidden", run.last)


def _backward(run: _Run) -> None:
    """From the last block to the first: its maps' statistics, and the gradient before it."""
    run.progress.stage("calibrate: backward", run.last, "blocks")
    for index in reversed(range(run.last)):
        if not any(run.boundaries.has("gradient", earlier) for earlier in range(index + 1)):
            with run.model.block(index), run.boundaries.writing("gradient", index) as append:
                _gather_block(run, index, append)
        # What the next block doesn't need; of a run killed at this point, too.
        run.boundaries.remove("gradient", index + 1)
        if index:
            run.boundaries.remove("hidden", index)
        run.progress.advance(1, run.model.names[index])


def _gather_block(run: _Run, index: int, append: Callable[[Tensor], None]) -> None:
    model, name = run.model, run.model.names[index]
    like = [] if index + 1 == run.last else map(Fold.from_data, run.store.folds(model.names[index + 1]))
    folds = block_folds(model, index, like)
    run.store.save_folds(name, [fold.as_data() for fold in folds])
    weights = sum(parameter.nbytes for parameter in model.blocks[index].parameters())
    budget = None if run.memory is None else run.memory - _OVERHEAD - weights
    for number, maps in enumerate(_passes(linear_maps(model.blocks[index], name), budget)):
        observation = Observation(model.blocks[index], name, maps)
        cache = CacheObservation()
        for start, stop, held_out in run.batches():
            hidden = run.boundaries.read("hidden", index, start, stop).requires_grad_()
            after = run.boundaries.read("gradient", index + 1, start, stop)
            observation.held_out = held_out
            with observation, cache.watching(model.blocks[index], name):
                output = model.run(index, hidden, cache.empty(model.config))
            (gradient,) = torch.autograd.grad(output, hidden, after)
            if number == 0:
                append(gradient)
        save_block(run.store, observation.sums, maps, run.tokens)
        if number == 0:
            for module, found in cache_statistics(model, index, cache, folds).items():
                run.store.save_cache(module, found)
    blend_starved(run.store, name)


def _passes(maps: list[LinearMap], budget: int | None) -> Iterator[list[LinearMap]]:
    """The maps in groups whose sums fit in `budget` bytes, at least one map each."""
    group: list[LinearMap] = []
    size = 0
    for linear_map in maps:
        if group and budget is not None and size + linear_map.bytes > budget:
            yield group
            group, size = [], 0
        group.append(linear_map)
        size += linear_map.bytes
    yield group


def _save_head(folder: Path, head: Head) -> None:
    sums = head.sums
    arrays: dict[str, Any] = {
        "second_moment": mirrored(sums.second_moment).numpy(),
        "held_out": mirrored(sums.held_out).numpy(),
        "rows": sums.rows.numpy(),
        "predicted": head.predicted.numpy(),
        "sample": sums.peaks.sample,
        **{f"peaks_{size}": total.numpy() for size, total in sums.peaks.sums.items()},
    }
    with (folder / "head.npz").open("wb") as file:
        np.savez(file, **arrays)


def _embedding(run: _Run) -> None:
    """Statistics of the input embedding and the head, or of the one matrix that is both."""
    skeleton = run.model.skeleton
    with np.load(run.boundaries.folder / "head.npz") as file:
        raw = dict(file)
    squares = torch.zeros(run.boundaries.shape[2])
    held_out_squares = torch.zeros_like(squares)
    for start, stop, held_out in run.batches():
        gradient = run.boundaries.read("gradient", 0, start, stop).float()
        (held_out_squares if held_out else squares).add_(gradient.square().sum((0, 1)))
    scale = _embedding_scale(run)
    training, checking = run.tokens.counts
    head = head_statistics(raw, training, checking)
    embedding = embedding_statistics(
        run.tokens,
        raw["predicted"],
        (scale**2 * squares / training).numpy(),
        (scale**2 * held_out_squares / checking).numpy(),
    )
    if skeleton.head == skeleton.embedding:
        run.store.save(skeleton.head, tied(head, embedding))
    else:
        run.store.save(skeleton.head, head)
        run.store.save(skeleton.embedding, embedding)


def _embedding_scale(run: _Run) -> float:
    """What the embedding's rows are multiplied with before the first block (other than 1 in Gemma, Granite)."""
    ids = torch.from_numpy(run.tokens.blocks[:1])
    hidden = run.boundaries.read("hidden", 0, 0, 1).double()
    tensor = run.model.skeleton.tensors[run.model.skeleton.embedding]
    rows = torch.from_numpy(np.concatenate([tensor.rows(i, i + 1) for i in ids[0].tolist()])).double()
    return float((hidden[0] * rows).sum() / rows.square().sum())


def statistics_for(
    checkpoint: Checkpoint, read: CalibrationTokens, memory: int | None, progress: Progress
) -> StatisticsStore:
    """The statistics of a model on these tokens, gathered now or taken from the user's cache.

    Raises:
        see `gather`.
    """
    identity = [content_hash(checkpoint), read.sha256, read.asked, read.blocks.shape[1], read.seed]
    key = json.dumps([*identity, FORMAT_VERSION])
    folder = cache_directory() / "statistics" / hashlib.sha256(key.encode()).hexdigest()
    store = StatisticsStore(folder)
    if not store.complete:
        others = "another run is gathering the same statistics: waiting for it"
        with store.alone(lambda: progress.message(others)):
            gather(checkpoint, read, store, memory=memory, progress=progress)
    return store
