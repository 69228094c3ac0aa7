"""Codes and parameters of tensors that are quantized in the source, through the views that containers make of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from fewbits.checkpoint.checkpoint import LazyTensor, StoredTensor
from fewbits.checkpoint.packed import PackedTensor
from fewbits.checkpoint.views import Permuted, Renamed, Reshaped, RowRange, Stacked
from fewbits.errors import FormatError
from fewbits.formats import get_format
from fewbits.formats.format import QTensor


def quantized_format(tensor: LazyTensor) -> str | None:
    """The format of ours that a tensor is quantized in; None for floating point, and for formats that aren't ours."""
    base = tensor
    while isinstance(base, Renamed | Permuted | RowRange | Reshaped):
        base = base.base
    if isinstance(base, Stacked):
        found = {quantized_format(part) for part in base.parts}
        return found.pop() if len(found) == 1 else None
    if isinstance(base, PackedTensor):
        return base.dtype
    if not isinstance(base, StoredTensor):
        return None
    try:
        fmt = get_format(base.dtype)
    except FormatError:
        return None
    return base.dtype if list(fmt.parts((1, fmt.block or 1))) == ["data"] else None


def quantized_rows(tensor: LazyTensor, start: int, stop: int) -> QTensor:
    """Rows start … stop of a tensor of which `quantized_format` tells a format.

    Raises:
        FormatError: a view cuts rows, as for vectors.
    """
    if isinstance(tensor, Renamed):
        return quantized_rows(tensor.base, start, stop)
    if isinstance(tensor, Permuted):
        wanted = tensor.row_index[start:stop]
        first = int(wanted.min())
        return _take(quantized_rows(tensor.base, first, int(wanted.max()) + 1), wanted - first)
    if isinstance(tensor, RowRange):
        return quantized_rows(tensor.base, tensor.start + start, tensor.start + stop)
    if isinstance(tensor, Reshaped) and tensor.matrix[1] == tensor.base.matrix[1]:
        return quantized_rows(tensor.base, start, stop)
    if isinstance(tensor, Stacked):
        return _join(tensor, start, stop)
    if isinstance(tensor, PackedTensor):
        together = get_format(tensor.dtype).rows_together
        first = start - start % together
        return _take(tensor.quantized(first, stop), np.arange(start - first, stop - first))
    if isinstance(tensor, StoredTensor):
        fmt, shape = get_format(tensor.dtype), (stop - start, tensor.matrix[1])
        return QTensor(fmt, shape, *fmt.unpack({"data": tensor.raw(start, stop)}, shape))
    raise FormatError(f"{tensor.name} is changed on the way, so that its codes can't be kept")


def _take(tensor: QTensor, rows: npt.NDArray[np.intp]) -> QTensor:
    """Some rows, in this order."""
    if len(rows) == tensor.shape[0] and (rows == np.arange(len(rows))).all():
        return tensor
    blocks = tensor.shape[1] // tensor.format.block_of(tensor.shape[1])
    index = (rows[:, None] * blocks + np.arange(blocks)).reshape(-1)
    shape = (len(rows), tensor.shape[1])
    return replace(tensor, shape=shape, codes=tensor.codes[rows], params=tensor.params.take(index))


def _join(tensor: Stacked, start: int, stop: int) -> QTensor:
    pieces = []
    for part, end in zip(tensor.parts, tensor.ends.tolist(), strict=True):
        begin = end - part.matrix[0]
        if start < end and stop > begin:
            pieces.append(quantized_rows(part, max(start, begin) - begin, min(stop, end) - begin))
    if len(pieces) == 1:
        return pieces[0]
    codes = np.concatenate([p.codes for p in pieces])
    params = type(pieces[0].params).join([p.params for p in pieces])
    return QTensor(pieces[0].format, (stop - start, tensor.matrix[1]), codes, params)
