"""Drawing tokens from a model's predictions."""

from __future__ import annotations

import torch
from torch import Tensor

# Labels that are drawn together at first.
_GROUP = 64


def draw(p: Tensor, generator: torch.Generator) -> Tensor:
    """A label for each row of probabilities [T, V], int64 [T, 1].

    A group of neighbouring labels is drawn first, then one of the group: the probabilities are read once,
    where torch.multinomial draws a random number for every entry.
    """
    padding = -p.shape[1] % _GROUP
    grouped = torch.nn.functional.pad(p, (0, padding)).reshape(len(p), -1, _GROUP)
    group = _draw(grouped.sum(-1).float(), generator)
    inside = grouped.gather(1, group[:, :, None].expand(-1, -1, _GROUP))[:, 0]
    return (group * _GROUP + _draw(inside.float(), generator)).clamp_max(p.shape[1] - 1)


def _draw(shares: Tensor, generator: torch.Generator) -> Tensor:
    cumulative = shares.cumsum(1)
    threshold = torch.rand(len(shares), 1, generator=generator) * cumulative[:, -1:]
    labels: Tensor = torch.searchsorted(cumulative, threshold, right=True)
    return labels.clamp_max(shares.shape[1] - 1)
