"""From sums over tokens to `Statistics`: means per token of the text, scaled as statistics.py defines them.

Dimension letters: T tokens of the text, N rows, K columns of a matrix; V, D of the embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewbits.calibration.linear_maps import LinearMap, Sums, mirrored
from fewbits.calibration.statistics import OutputMoments, Statistics
from fewbits.calibration.store import StatisticsStore, is_starved
from fewbits.calibration.text import CalibrationTokens

Floats = npt.NDArray[np.float32]


def save_block(
    store: StatisticsStore, sums: Mapping[str, Sums], maps: Iterable[LinearMap], tokens: CalibrationTokens
) -> None:
    """Write what a pass over a block gathered; the sums are used up by it.

    Means are over all T tokens, also of experts: what few tokens see costs little KL per token of text.
    Matrices that no `linear` used have no sums and get no statistics, but for experts without tokens.
    """
    training, checking = tokens.counts
    for linear_map in maps:
        found = sums.get(linear_map.name)
        if found is None:
            if "#" not in linear_map.name:
                continue
            found = Sums(*linear_map.shape)
        store.save(
            linear_map.name,
            Statistics(
                second_moment=mirrored(found.second_moment).div_(training).numpy(),
                row_importance=mean_one(found.rows.numpy()),
                held_out=mirrored(found.held_out).div_(checking).numpy(),
                tokens=found.tokens,
                outputs=_outputs(found.outputs),
                held_out_outputs=_outputs(found.held_out_outputs),
                peaks={size: (total / training).numpy() for size, total in found.peaks.sums.items()},
                sample=found.peaks.sample,
                restore=found.peaks.restore,
                largest=found.peaks.largest.numpy(),
            ),
        )


def _outputs(sums: Tensor) -> OutputMoments:
    """Upper triangles [N / B, B, B] as symmetric matrices, scaled to a mean diagonal of 1."""
    diagonal = torch.diagonal(sums, dim1=1, dim2=2)
    mean = float(diagonal.mean())
    if not mean > 0:
        return torch.eye(sums.shape[1]).expand(sums.shape).to(torch.float16).numpy()
    return (mirrored(sums) / mean).clamp(-65504, 65504).to(torch.float16).numpy()


def mean_one(rows: Floats) -> Floats:
    """Scaled to a mean of 1; all ones if there is nothing to scale."""
    mean = rows.mean(dtype=np.float64)
    return np.ones_like(rows) if not mean > 0 else (rows / mean).astype(np.float32)


def blend_starved(store: StatisticsStore, block: str) -> None:
    """Lean the statistics of a block's starved experts on those of the other experts of the same parameter.

    With n tokens of its own, K / 4 needed and a = n / (K / 4), an expert's second moment per token routed to
    it becomes a times its own plus 1 - a times the others'. Its share of the text is taken as (n + 1) / T,
    since an expert that calibration never reached will be reached some day.
    """
    stacks: dict[str, list[str]] = {}
    for name in store.names():
        if name.startswith(f"{block}.") and "#" in name:
            stacks.setdefault(name.split("#")[0], []).append(name)
    for names in stacks.values():
        _blend(store, names)


def _blend(store: StatisticsStore, names: list[str]) -> None:
    starved: list[str] = []
    total: Statistics | None = None
    for name in names:
        own = store.load(name)
        if is_starved(own.tokens, len(own.second_moment)):
            starved.append(name)
        else:
            rows = own.row_importance * np.trace(own.second_moment)
            total = _sum(total, own.second_moment, rows, own.held_out, own.tokens)
    if total is None or not starved:
        return  # nothing to lean on
    for name in starved:
        own = store.load(name)
        trust = 4 * own.tokens / len(own.second_moment)
        share = (1 - trust) * (own.tokens + 1) / total.tokens
        grown = trust * (own.tokens + 1) / max(own.tokens, 1)
        rows = grown * np.trace(own.second_moment) * own.row_importance + share * total.row_importance
        blended = Statistics(
            second_moment=(grown * own.second_moment + share * total.second_moment).astype(np.float32),
            row_importance=mean_one(rows.astype(np.float32)),
            held_out=(grown * own.held_out + share * total.held_out).astype(np.float32),
            tokens=own.tokens,
        )
        store.save(name, blended)


def _sum(total: Statistics | None, moment: Floats, rows: Floats, held_out: Floats, tokens: int) -> Statistics:
    if total is None:
        return Statistics(moment, rows, held_out, tokens)
    return Statistics(
        total.second_moment + moment,
        total.row_importance + rows,
        total.held_out + held_out,
        total.tokens + tokens,
    )


def head_statistics(raw: Mapping[str, Any], training: int, checking: int) -> Statistics:
    """From the sums of `Head`: second_moment, held_out [D, D], rows [V]."""
    return Statistics(
        second_moment=(raw["second_moment"] / training).astype(np.float32),
        row_importance=mean_one(raw["rows"]),
        held_out=(raw["held_out"] / checking).astype(np.float32),
        tokens=training,
        peaks={
            int(name.removeprefix("peaks_")): (total / training).astype(np.float32)
            for name, total in raw.items()
            if name.startswith("peaks_")
        },
        sample=raw["sample"],
    )


def embedding_statistics(
    tokens: CalibrationTokens, predicted: Floats, squares: Floats, held_out_squares: Floats
) -> Statistics:
    """Of an input embedding [V, D], whose row v is added to the hidden state wherever token v is read.

    An error e_v then costs 1/2 f_v sum_k E[g_k²] e_vk², f_v being how often v is read: half from counts, half
    from the model's own predictions, which know of tokens that the calibration text lacks.

    Args:
        tokens: for the counts.
        predicted: sum over tokens of the model's predictions, float32 [V].
        squares: E[g²] of the gradient at the embedding's rows, float32 [D].
        held_out_squares: the same over held-out tokens.
    """
    vocabulary = len(predicted)
    read = np.bincount(tokens.training.reshape(-1), minlength=vocabulary)[:vocabulary]
    frequency = read / read.sum() + predicted / predicted.sum(dtype=np.float64)
    return Statistics(
        second_moment=np.diag(squares / vocabulary).astype(np.float32),
        row_importance=mean_one(frequency.astype(np.float32)),
        held_out=np.diag(held_out_squares / vocabulary).astype(np.float32),
        tokens=tokens.counts[0],
    )


def tied(head: Statistics, embedding: Statistics) -> Statistics:
    """Of one matrix that is both: the costs add up; rows are weighted by each side's share of them."""
    shares = float(np.trace(head.second_moment)), float(np.trace(embedding.second_moment))
    return Statistics(
        second_moment=head.second_moment + embedding.second_moment,
        row_importance=mean_one(shares[0] * head.row_importance + shares[1] * embedding.row_importance),
        held_out=head.held_out + embedding.held_out,
        tokens=head.tokens,
        peaks=head.peaks,
        sample=head.sample,
    )
