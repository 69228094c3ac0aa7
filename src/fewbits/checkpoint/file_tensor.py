"""A tensor as it lies in a safetensors or GGUF file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fewbits.checkpoint.byte_range import read_bytes
from fewbits.checkpoint.checkpoint import Floats, StoredTensor
from fewbits.checkpoint.dtypes import STORAGE, decode_plain

if TYPE_CHECKING:
    from fewbits.formats.stored_rows import StoredRows


@dataclass(frozen=True)
class FileTensor(StoredTensor):
    """Rows of one tensor, read from the file when asked for. Cheap to pickle: it holds no file open.

    Attributes:
        name: its name in the file.
        shape: in NumPy's order.
        dtype: a key of `dtypes.STORAGE`, or a block format of `gguf_constants.GGML_TYPES`.
        path: the file.
        offset: of the first byte, from the start of the file.
        nbytes: of the whole tensor.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    path: Path
    offset: int
    nbytes: int

    def raw(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Bytes of rows start … stop, uint8 [stop - start, bytes per row], a fresh array."""
        n, _ = self.matrix
        if not 0 <= start <= stop <= n:
            raise IndexError(f"rows {start} … {stop} of {self.name}, which has {n}")
        row_bytes = self.nbytes // n if n else 0
        data = read_bytes(self.path, self.offset + start * row_bytes, (stop - start) * row_bytes)
        return data.reshape(stop - start, row_bytes)

    def stored_rows(self, start: int, stop: int) -> StoredRows:
        """Rows start … stop [stop - start, K] as they lie in the file where they are F16 or BF16; else as float32."""
        if self.dtype not in ("F16", "BF16"):
            return self.rows(start, stop)
        found: StoredRows = self.raw(start, stop).view(STORAGE[self.dtype])
        return found

    def rows(self, start: int, stop: int) -> Floats:
        """Rows start … stop as float32 [stop - start, K], a fresh array."""
        raw = self.raw(start, stop)
        _, columns = self.matrix
        if not raw.size:
            return np.empty((stop - start, columns), np.float32)
        if self.dtype in STORAGE:
            return decode_plain(self.dtype, raw)
        from fewbits.checkpoint.ggml_decoding import decode_blocks  # it imports the formats

        return decode_blocks(self.dtype, raw, columns)
