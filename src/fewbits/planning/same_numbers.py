"""Which formats of a container hold what a source holds already, exactly, without quantizing again.

Every tensor is read once; formats that can't take over some of its rows are crossed out. Of those that are left for all
tensors of a source's format, the one with the fewest bits is taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fewbits.checkpoint.codes import quantized_format, quantized_rows
from fewbits.checkpoint.dtypes import PLAIN, decode_plain, encode_plain
from fewbits.errors import FewbitsError, FormatError, PlanError
from fewbits.export.exporter import Exporter, OutputTensor
from fewbits.formats import get_format
from fewbits.formats.numbers import Numbers, UnlikeError, numbers_of, taken_over
from fewbits.planning.allocation import tensor_nbytes
from fewbits.progress import Progress

CHUNK_ELEMENTS = 1 << 18
_NAMED = 3
# A multiple of the rows that any format packs together.
_ROWS_TOGETHER = 128
# Formats that are tried on all rows, of those that hold the first: the smallest. Symmetric ones, which some rows of a
# tensor may fit by chance, come before those with zero points, hence more than one or two.
_KEPT = 6


@dataclass
class Candidates:
    """Formats and dtypes that may hold a tensor.

    Attributes:
        tensor: the container's.
        left: names of those that held all rows so far.
        reasons: of the others, name -> why not.
        unlike: those of them that have other groups or kinds of numbers.
    """

    tensor: OutputTensor
    left: list[str]
    reasons: dict[str, str] = field(default_factory=dict)
    unlike: set[str] = field(default_factory=set)

    def cross_out(self, name: str, reason: FewbitsError) -> None:
        """This one can't."""
        self.left.remove(name)
        self.reasons[name] = reason.what
        self.unlike |= {name} if isinstance(reason, UnlikeError) else set()

    @property
    def reason(self) -> str:
        """The format that comes nearest and why it can't: the commonest reason of those that are alike."""
        near = {n: r for n, r in self.reasons.items() if n not in self.unlike} or self.reasons
        commonest = Counter(near.values()).most_common(1)[0][0]
        return f"{next(name for name, reason in near.items() if reason == commonest)}: {commonest}"


def same_formats(tensors: Sequence[OutputTensor], exporter: Exporter, progress: Progress) -> dict[str, str]:
    """The format or dtype of each tensor in which the container holds the source's numbers.

    Raises:
        PlanError: some tensors' can't be held; the message names the first of them, and says why.
    """
    progress.stage("comparing", sum(t.source.matrix[0] * t.source.matrix[1] for t in tensors), "weights")
    found = {}
    for tensor in tensors:
        found[tensor.name] = _candidates(tensor, exporter)
        progress.advance(tensor.source.matrix[0] * tensor.source.matrix[1], tensor.name)
    if refused := [c for c in found.values() if not c.left]:
        raise _refusal(refused, exporter)
    return _chosen(found, tensors, exporter)


def _candidates(tensor: OutputTensor, exporter: Exporter) -> Candidates:
    own = quantized_format(tensor.source)
    if own is None or not tensor.quantizable:
        return _plain(tensor, exporter, stored=own)
    candidates = Candidates(tensor, [*exporter.formats])
    for numbers, shape in _numbers(candidates):
        for name in [*candidates.left]:
            try:
                taken_over(numbers, get_format(name), shape, checked=False)
            except FormatError as error:
                candidates.cross_out(name, error)
        # Larger ones would hold the rest as well, and cost the same time again each.
        candidates.left = sorted(candidates.left, key=lambda name: _rank(tensor, exporter, name))[:_KEPT]
    return candidates


def _numbers(candidates: Candidates) -> Iterator[tuple[Numbers, tuple[int, int]]]:
    """Of all rows, chunk by chunk; ends where no candidate is left."""
    source = candidates.tensor.source
    rows, columns = source.matrix
    step = max(_ROWS_TOGETHER, CHUNK_ELEMENTS // columns // _ROWS_TOGETHER * _ROWS_TOGETHER)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        try:
            yield numbers_of(quantized_rows(source, start, stop)), (stop - start, columns)
        except FormatError as error:
            for name in [*candidates.left]:
                candidates.cross_out(name, error)
            return


def _plain(tensor: OutputTensor, exporter: Exporter, stored: str | None) -> Candidates:
    """What isn't quantized, or mustn't be: in its own dtype, or in the smallest that holds it."""
    if stored is None and tensor.source.dtype == tensor.plain:
        return Candidates(tensor, [tensor.plain])
    names: list[str] = [name for name in ("BF16", "F16", "F32") if name in exporter.plain_formats]
    if stored is None and tensor.plain in names:
        names = [tensor.plain, *(name for name in names if name != tensor.plain)]
    candidates = Candidates(tensor, names)
    for chunk in tensor.source.chunks(CHUNK_ELEMENTS):
        for name in [*candidates.left]:
            if not np.array_equal(decode_plain(name, encode_plain(name, chunk)).reshape(chunk.shape), chunk):
                candidates.cross_out(name, FormatError(f"its numbers aren't numbers of {name}"))
    return candidates


def _chosen(
    found: Mapping[str, Candidates], tensors: Sequence[OutputTensor], exporter: Exporter
) -> dict[str, str]:
    """One format for all tensors of a source's format if there is one, else one for each tied group."""
    chosen = {name: c.left[0] for name, c in found.items()}
    alike: dict[str, list[str]] = {}
    for tensor in tensors:
        if (own := quantized_format(tensor.source)) is not None and tensor.quantizable:
            alike.setdefault(own, []).append(tensor.name)
    taken = {name for names in alike.values() for name in names}
    tied = exporter.tied([t for t in tensors if t.name in taken])
    for names in alike.values():
        best = _best([found[name] for name in names], exporter)
        chosen |= {name: best or _best([found[name]], exporter) or chosen[name] for name in names}
    for names in tied:
        if len({chosen[name] for name in names}) == 1:
            continue
        best = _best([found[name] for name in names], exporter)
        if best is None:
            raise PlanError(
                f"{exporter.name} holds {', '.join(names[:_NAMED])} in one format, and none holds all their numbers",
                found=", ".join(sorted({found[name].tensor.source.dtype for name in names})),
                action="Quantize the original model",
            )
        chosen |= dict.fromkeys(names, best)
    return chosen


def _best(candidates: Sequence[Candidates], exporter: Exporter) -> str | None:
    """Of the formats that are left for all, the one with the fewest bytes.

    Of equals the source's own, what all runtimes compute, and what has no zero points, in this order.
    """
    left = [name for name in candidates[0].left if all(name in c.left for c in candidates[1:])]
    tensor = candidates[0].tensor

    quantized = (name for name in left if name not in PLAIN)
    return min(quantized, key=lambda name: _rank(tensor, exporter, name), default=None)


def _rank(tensor: OutputTensor, exporter: Exporter, name: str) -> tuple[int, bool, bool, bool, int]:
    zeros = not getattr(get_format(name), "symmetric", False)
    rare, place = name not in exporter.candidates, exporter.formats.index(name)
    return tensor_nbytes(tensor, name), name != tensor.source.dtype, rare, zeros, place


def _refusal(refused: Sequence[Candidates], exporter: Exporter) -> PlanError:
    def told(candidates: Candidates) -> str:
        return f"{candidates.tensor.name} ({candidates.tensor.source.dtype}; {candidates.reason})"

    more = f" and {len(refused) - _NAMED} more" if len(refused) > _NAMED else ""
    return PlanError(
        f"{exporter.name} can't hold the numbers of {len(refused)} tensors without quantizing again",
        found=", ".join(told(c) for c in refused[:_NAMED]) + more,
        action=f"Quantize the original model: fewbits quantize MODEL OUT --to {exporter.name}",
    )
