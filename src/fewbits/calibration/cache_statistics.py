"""What keys and values look like where they enter the cache, for the scales of caches of 8 bits.

They are seen where transformers hands them to a cache, so that nothing here knows architectures: while a block runs,
it gets a cache that takes notes and gives back what it was given.

Dimension letters: B sequences, S positions, H heads of keys, D width of a head, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from fewbits.calibration.blocks import BlockwiseModel
from fewbits.calibration.find_folds import channel_sources, distinct_scales, multiplied, producer_changes
from fewbits.calibration.fold import Fold
from fewbits.calibration.kv_statistics import CacheStatistics, ChannelSource

# Every so manieth token is kept as it is, until there are so many.
_SAMPLED, _SAMPLES = 101, 256
_TRIAL_TOKENS = 16


class _Sums:
    """Largest magnitudes [H, D] and a sample of tokens [H, D] of keys or values."""

    def __init__(self) -> None:
        self.peaks: Tensor | None = None
        self._sample: list[Tensor] = []
        self._tokens = 0

    def add(self, x: Tensor) -> None:
        """Float32 [B, H, S, D]."""
        peaks = x.abs().amax(dim=(0, 2))
        self.peaks = peaks if self.peaks is None else torch.maximum(self.peaks, peaks)
        tokens = x.transpose(1, 2).flatten(0, 1)
        room = _SAMPLES - sum(map(len, self._sample))
        chosen = list(range(-self._tokens % _SAMPLED, len(tokens), _SAMPLED)[:room])
        self._sample.append(tokens[chosen].clone())
        self._tokens += len(tokens)

    @property
    def sample(self) -> Tensor:
        return torch.cat(self._sample)


@dataclass
class CacheObservation:
    """Of a block's keys and values: by the name of the module that hands them to the cache.

    Attributes:
        keys: name of the module -> sums.
        values: likewise.
    """

    keys: dict[str, _Sums] = field(default_factory=dict)
    values: dict[str, _Sums] = field(default_factory=dict)
    _running: list[str] = field(default_factory=list)

    def empty(self, config: Any) -> DynamicCache:
        """A cache for one pass through the block."""
        return _ObservedCache(config, self)

    def add(self, keys: Tensor, values: Tensor) -> None:
        """What the innermost module that runs hands over."""
        name = self._running[-1] if self._running else ""
        self.keys.setdefault(name, _Sums()).add(keys.detach())
        self.values.setdefault(name, _Sums()).add(values.detach())

    @contextmanager
    def watching(self, block: nn.Module, prefix: str) -> Iterator[None]:
        """Within this context it is known which module of the block runs."""
        handles = []
        for name, module in block.named_modules():
            full = f"{prefix}.{name}" if name else prefix
            handles.append(module.register_forward_pre_hook(lambda *_, full=full: self._running.append(full)))
            handles.append(module.register_forward_hook(lambda *_: self._leave(), always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._running.clear()

    def _leave(self) -> None:
        self._running.pop()


class _ObservedCache(DynamicCache):  # type: ignore[misc]
    """Takes notes and keeps nothing."""

    def __init__(self, config: Any, observation: CacheObservation) -> None:
        super().__init__(config=config)
        self._observation = observation

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The keys and values themselves."""
        del layer_idx, args, kwargs
        self._observation.add(key_states, value_states)
        return key_states, value_states


def cache_statistics(
    model: BlockwiseModel, index: int, observation: CacheObservation, folds: Iterable[Fold]
) -> dict[str, CacheStatistics]:
    """What was observed in a filled block, by module, and which parameters decide the scale of which channel."""
    sources = _sources(model, index, folds)
    found = {}
    for name, keys in observation.keys.items():
        values = observation.values[name]
        assert keys.peaks is not None
        assert values.peaks is not None
        found[name] = CacheStatistics(
            key_peaks=keys.peaks.numpy(), value_peaks=values.peaks.numpy(),
            keys=_float16(keys.sample), values=_float16(values.sample),
            key_source=sources.get((name, "keys")), value_source=sources.get((name, "values")),
        )  # fmt: skip
    return found


def _float16(x: Tensor) -> npt.NDArray[np.float16]:
    return x.clamp(-65504, 65504).to(torch.float16).numpy()


def _sources(
    model: BlockwiseModel, index: int, folds: Iterable[Fold]
) -> dict[tuple[str, str], ChannelSource]:
    """Which fold's producer a module's keys or values are made of, tried as folds are (see find_folds.py).

    A fold as a whole is applied: what a norm loses, its readers gain, so that it changes neither.
    """
    block, prefix = model.blocks[index], model.names[index]
    parameters = {f"{prefix}.{name}": parameter for name, parameter in block.named_parameters()}
    width = model.skeleton.tensors[model.skeleton.embedding].shape[-1]
    hidden = torch.randn(1, _TRIAL_TOKENS, width, generator=torch.Generator().manual_seed(3))

    def seen() -> Mapping[tuple[str, str], Tensor]:
        observed = _Heads()
        with torch.no_grad(), observed.watching(block, prefix):
            model.run(index, hidden, observed.empty(model.config))
        return observed.heads

    found: dict[tuple[str, str], ChannelSource] = {}
    before = seen()
    for fold in folds:
        if not before or "#" in fold.producer or fold.producer not in parameters:
            continue
        scales = torch.ones(len(parameters[fold.producer]))
        used = np.unique(fold.rows)
        scales[used] = distinct_scales(len(used))
        changes = producer_changes(parameters[fold.producer], parameters.get(fold.bias), scales, fold.offset)
        for consumer in fold.consumers:
            name, _, expert = consumer.partition("#")
            matrix = parameters[name][int(expert)] if expert else parameters[name]
            changes.append((matrix, 1 / scales[fold.rows], 0.0))
        with multiplied(changes):
            after = seen()
        for part, heads in before.items():
            rows = channel_sources(heads, after[part], scales) if part in after else None
            if rows is not None:
                found[part] = ChannelSource(fold.producer, rows)
    return found


class _Heads(CacheObservation):
    """Keeps the keys and values of one pass as they are: (module, part) -> [T, H * D]."""

    def __init__(self) -> None:
        super().__init__()
        self.heads: dict[tuple[str, str], Tensor] = {}

    def add(self, keys: Tensor, values: Tensor) -> None:
        """See `CacheObservation.add`."""
        for part, x in (("keys", keys), ("values", values)):
            self.heads[self._running[-1], part] = x.transpose(1, 2).flatten(0, 1).flatten(1).clone()
