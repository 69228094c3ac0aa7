"""Finding the scales of a model that may be moved from one parameter into others without changing what it computes.

A channel that a norm or a linear map produces and only linear maps read may be made s times smaller by its producer
if its readers' columns are made s times larger. Which parameters stand in this relation differs between
architectures, so nothing here knows them: a producer is rescaled by different numbers for each channel, the inputs
of all maps are watched, and where they are the old ones times these numbers there is a reader. That nothing else
reads the channels is then tried on the whole block: its output must stay as it was.

Dimension letters: C channels of a producer, N and K rows and columns of a weight, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fewbits.calibration.blocks import BlockwiseModel
from fewbits.calibration.fold import Fold
from fewbits.calibration.linear_maps import MapNames, linear_maps
from fewbits.language_model.linear_calls import LinearCalls

# Scales that are tried lie between these, and are never near 1, which is what an unmoved channel shows.
_LEAST, _MOST = 1.25, 3.0
_TOLERANCE = 1e-4
# Heads of queries that share values, at most, where a runtime fuses all three.
_MOST_SHARED = 16
_TOKENS = 16
# What is added to a norm's weight before it multiplies: nothing, or 1 (Gemma).
_OFFSETS = (0.0, 1.0)

# A tensor, factors that broadcast over it, and what is added before and taken away after.
Change = tuple[Tensor, Tensor, float]


def block_folds(model: BlockwiseModel, index: int, like: Iterable[Fold] = ()) -> list[Fold]:
    """The folds of a filled block.

    Args:
        model: the model.
        index: of the block.
        like: folds of another block of the model, tried first: most blocks are alike.
    """
    trial = _Trial(model, index)
    expected = [_renamed(fold, trial.prefix) for fold in like]
    if expected and all(trial.holds(fold) for fold in expected):
        return expected
    found: dict[str, Fold] = {}
    for name, rows, offset in _producers(trial):
        if name not in found and (fold := trial.fold_of(name, rows, offset)) is not None:
            found[name] = fold
    return [*found.values(), *_expert_folds(trial)]


def head_fold(model: BlockwiseModel, width: int) -> Fold | None:
    """The final norm and the head, where the head isn't the input embedding; `width` is D."""
    skeleton = model.skeleton
    if skeleton.head == skeleton.embedding:
        return None
    hidden = _random(1, _TOKENS, width)
    with model.final_norm() as norm, torch.no_grad():
        before = norm(hidden)
        parameters = dict(skeleton.model.named_parameters())
        for name, parameter in parameters.items():
            if parameter.is_meta or parameter.shape != (width,) or name.endswith(".bias"):
                continue
            bias = _bias_of(name, parameters)
            for offset in _OFFSETS:
                scales = distinct_scales(width)
                with multiplied(producer_changes(parameter, parameters.get(bias), scales, offset)):
                    after = norm(hidden)
                if _same(after, before * scales):
                    return Fold(name, bias, offset, (skeleton.head,), np.arange(width))
    return None


def _renamed(fold: Fold, prefix: str) -> Fold:
    """The same fold in the block named `prefix`."""
    old = fold.producer[: len(_block_prefix(fold.producer, prefix))]

    def name(text: str) -> str:
        return prefix + text[len(old) :] if text else ""

    return Fold(
        name(fold.producer), name(fold.bias), fold.offset, tuple(map(name, fold.consumers)), fold.rows
    )


def _block_prefix(name: str, like: str) -> str:
    """The part of a parameter's name that names its block; `like` is another block's."""
    return ".".join(name.split(".")[: like.count(".") + 1])


class _Inputs(LinearCalls):
    """Within this context the inputs of a block's linear maps are kept, by the maps' names: [T, K]."""

    def __init__(self, names: MapNames) -> None:
        super().__init__()
        self._names = names
        self.found: dict[str, Tensor] = {}

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The same, after keeping x."""
        if name := self._names.of(weight):
            self.found[name] = x.detach().reshape(-1, x.shape[-1]).clone()
        return linear(x, weight, bias)


class _Trial:
    """A filled block and how it behaves when parameters are rescaled."""

    def __init__(self, model: BlockwiseModel, index: int) -> None:
        self._model, self._index = model, index
        self.prefix = model.names[index]
        block = model.blocks[index]
        self.parameters: dict[str, nn.Parameter] = {
            f"{self.prefix}.{name}": parameter for name, parameter in block.named_parameters()
        }
        self.maps = {m.name: m.shape for m in linear_maps(block, self.prefix)}
        self._names = MapNames(block, self.prefix)
        width = model.skeleton.tensors[model.skeleton.embedding].shape[-1]
        # One token each: attention then passes values on as they are, whatever becomes of queries and keys.
        self._alone, self._together = _random(_TOKENS, 1, width), _random(1, _TOKENS, width)
        self._inputs, _ = self._run(self._alone)
        _, self._output = self._run(self._together)

    def _run(self, hidden: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        with torch.no_grad(), _Inputs(self._names) as inputs:
            output = self._model.run(self._index, hidden)
        return inputs.found, output

    def fold_of(self, producer: str, rows: slice, offset: float) -> Fold | None:
        """The fold of some rows of a parameter, if they are read by linear maps alone."""
        parameter = self.parameters[producer]
        count = len(range(*rows.indices(len(parameter))))
        scales = torch.ones(len(parameter))
        scales[rows] = distinct_scales(count)
        bias = _bias_of(producer, self.parameters)
        with multiplied(producer_changes(parameter, self.parameters.get(bias), scales, offset)):
            inputs, _ = self._run(self._alone)
        readers: dict[str, npt.NDArray[np.intp]] = {}
        for name, before in self._inputs.items():
            if (
                name in inputs
                and name != producer
                and (made := channel_sources(before, inputs[name], scales)) is not None
            ):
                readers[name] = made
        if not readers:
            return None
        where = next(iter(readers.values()))
        same = tuple(name for name, made in readers.items() if np.array_equal(made, where))
        # Which tokens an expert sees depends on what the router does, so that experts aren't found by their inputs.
        experts = tuple(
            name for name, (_, k) in self.maps.items() if "#" in name and k == len(where) and name not in same
        )
        for consumers in (same, (*same, *experts)):
            fold = Fold(producer, bias, offset, consumers, where)
            if self.holds(fold):
                return fold
        return None

    def holds(self, fold: Fold) -> bool:
        """Whether the block computes the same when the fold's channels are rescaled."""
        names = [name.partition("#")[0] for name in (fold.producer, *fold.consumers)]
        if any(name not in self.parameters for name in (*names, *((fold.bias,) if fold.bias else ()))):
            return False
        if any(self.maps[name][1] != len(fold.rows) for name in fold.consumers):
            return False
        producer = self._matrix(fold.producer)
        generator = torch.Generator().manual_seed(1)
        made = torch.ones(len(producer))
        used = np.unique(fold.rows)
        made[used] = 2.0 ** torch.randint(-1, 2, (len(used),), generator=generator)
        changes = producer_changes(producer, self.parameters.get(fold.bias), made, fold.offset)
        changes += [(self._matrix(name), 1 / made[fold.rows], 0.0) for name in fold.consumers]
        with multiplied(changes):
            _, output = self._run(self._together)
        return _same(output, self._output)

    def _matrix(self, name: str) -> Tensor:
        parameter, _, expert = name.partition("#")
        return self.parameters[parameter][int(expert)] if expert else self.parameters[parameter]


def _producers(trial: _Trial) -> Iterator[tuple[str, slice, float]]:
    """Parameters that may produce channels, which of their rows, and what is added to them."""
    widths = {k for _, k in trial.maps.values()}
    # Values of grouped queries are fewer than the columns that read them.
    shared = {k // g for k in widths for g in range(2, _MOST_SHARED + 1) if k % g == 0}
    for name, parameter in trial.parameters.items():
        if parameter.dim() == 1 and len(parameter) in widths and not name.endswith(".bias"):
            for offset in _OFFSETS:
                yield name, slice(None), offset
    for name, parameter in trial.parameters.items():
        if parameter.dim() == 2:
            count = len(parameter)
            yield name, slice(None), 0.0
            # The last or the first rows of maps that runtimes fuse: up below gate, values below queries and keys.
            for width in sorted(widths | shared, reverse=True):
                if width < count:
                    yield name, slice(count - width, count), 0.0
                if width < count and width in widths:
                    yield name, slice(0, width), 0.0


def _expert_folds(trial: _Trial) -> list[Fold]:
    """Folds from one stack of experts into another, each expert for itself."""
    stacks = [(n, p) for n, p in trial.parameters.items() if p.dim() == 3]
    found: list[Fold] = []
    for name, parameter in stacks:
        for reader, other in stacks:
            count, width = parameter.shape[1], other.shape[2]
            if reader == name or len(other) != len(parameter) or width > count:
                continue
            for start in dict.fromkeys((count - width, 0)):
                rows = np.arange(start, start + width)
                folds = [
                    Fold(f"{name}#{e}", "", 0.0, (f"{reader}#{e}",), rows) for e in range(len(parameter))
                ]
                if all(trial.holds(fold) for fold in folds):
                    found += folds
                    break
    return found


def _bias_of(name: str, parameters: Mapping[str, nn.Parameter]) -> str:
    """Name of the bias beside a weight; empty where there is none."""
    bias = f"{name.removesuffix('.weight')}.bias"
    return bias if name.endswith(".weight") and bias in parameters else ""


def channel_sources(before: Tensor, after: Tensor, scales: Tensor) -> npt.NDArray[np.intp] | None:
    """For each column of an input [T, K], the row whose scale it was multiplied with; None if it wasn't."""
    if before.shape != after.shape or not len(before):
        return None
    norms = before.square().sum(0)
    ratio = torch.where(norms > 0, (before * after).sum(0) / norms.clamp_min(1e-30), torch.nan)
    if not _same(after, before * ratio.nan_to_num(1.0)):
        return None
    ordered, order = torch.sort(scales)
    place = torch.searchsorted(ordered, ratio.nan_to_num(_LEAST)).clamp(1, len(ordered) - 1)
    nearer = place - (ratio.nan_to_num(_LEAST) - ordered[place - 1] < ordered[place] - ratio).to(torch.int64)
    rows = order[nearer].numpy()
    # Columns that are always zero say nothing; where all rows are read in order, they are in order too.
    silent = torch.isnan(ratio).numpy()
    rows[silent] = np.arange(len(rows))[silent] % len(scales)
    matched = torch.isclose(scales[torch.from_numpy(rows)], ratio, rtol=_TOLERANCE, atol=0).numpy() | silent
    moved = (torch.abs(ratio - 1) > _TOLERANCE).numpy() | silent
    return rows if matched.all() and moved.all() and not silent.all() else None


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= _TOLERANCE * other.abs().max())


def distinct_scales(count: int) -> Tensor:
    """Different numbers in no order and none near 1, float32 [count]."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return torch.linspace(_LEAST, _MOST, count)[order]


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


@contextmanager
def multiplied(changes: Iterable[Change]) -> Iterator[None]:
    """Tensors changed for a while; undone at the end."""
    kept = []
    try:
        with torch.no_grad():
            for tensor, factors, offset in changes:
                kept.append((tensor, tensor.clone()))
                tensor.add_(offset).mul_(factors).sub_(offset)
        yield
    finally:
        with torch.no_grad():
            for tensor, before in reversed(kept):
                tensor.copy_(before)


def producer_changes(tensor: Tensor, bias: Tensor | None, scales: Tensor, offset: float) -> list[Change]:
    """Rows (of vectors: elements) of a producer and its bias times scales."""
    rows = scales.reshape(-1, *[1] * (tensor.dim() - 1))
    return [(tensor, rows, offset), *([] if bias is None else [(bias, scales, 0.0)])]
