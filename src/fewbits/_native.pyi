from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float32]
_Codes = npt.NDArray[np.uint8]

def isa() -> str: ...
def visit_codes(
    values: _Floats,
    ranks: _Codes,
    grids: _Floats,
    gradient: _Floats,
    outputs: _Floats,
    hessian: _Floats,
    response: _Floats,
) -> int: ...
def round_columns(
    aim: _Floats,
    target: _Floats,
    error: _Floats,
    codes: _Codes,
    feedback: _Floats,
    largest_error: float | np.float32,
    group: npt.NDArray[np.int32],
    low: float,
    high: float,
    zero: float,
    levels: _Floats,
    code_table: _Codes,
    scale: _Floats,
    minimum: _Floats,
) -> None: ...
def move_columns(
    gradient: _Floats,
    values: _Floats,
    codes: _Codes,
    moved: _Floats,
    hessian: _Floats,
    inverse: _Floats,
    group: npt.NDArray[np.int32],
    low: float,
    high: float,
    zero: float,
    levels: _Floats,
    code_table: _Codes,
    scale: _Floats,
    minimum: _Floats,
) -> None: ...

class Sampler:
    def __init__(
        self,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        repetition_window: int = 64,
        seed: int = 0,
    ) -> None: ...
    def choose(self, logits: _Floats, recent: npt.NDArray[np.int32]) -> int: ...

def read_bandwidth(bytes: int, threads: int, passes: int = 5) -> float: ...  # noqa: A002

# Candidates of the searches in fewbits.formats.gguf_search, gguf_super_search and gguf_mxfp4, which say what they mean.
class ScaleSearch:
    def __init__(self, plain: float, places: Sequence[float], refits: int) -> None: ...

class AffineSearch:
    def __init__(self, steps: _Floats, below: _Floats, refits: int) -> None: ...

class SuperScaleSearch:
    def __init__(
        self,
        places: Sequence[float],
        super_places: Sequence[float],
        lowest: float,
        highest: float,
        windows: Sequence[int],
        group_window: int,
    ) -> None: ...

class SuperAffineSearch:
    def __init__(
        self, steps: _Floats, below: _Floats, super_places: Sequence[float], highest: float, rounds: int
    ) -> None: ...

class ExponentSearch:
    def __init__(self, offsets: Sequence[int], highest: int) -> None: ...

# A grid: lowest and highest value, code of 0, levels and codes at floor(2 t) + 256, or empty. A layout: bytes, places
# of halves, integers of scales, what is added to these, bits of codes that are inverted, pieces int32 [n, 8].
class BlockKernel:
    def __init__(
        self,
        block: int,
        group: int,
        largest: float,
        grid: tuple[float, float, float, _Floats, _Codes],
        layout: tuple[int, list[int], int, int, int, npt.NDArray[np.int32]],
        search: ScaleSearch | AffineSearch | SuperScaleSearch | SuperAffineSearch | ExponentSearch,
    ) -> None: ...
    def fit(self, weight: _Floats, importance: _Floats | None, halves: _Floats, scales: _Codes) -> None: ...
    def fit_group(
        self, weight: _Floats, importance: _Floats | None, halves: _Floats, scales: _Floats
    ) -> None: ...
    def quantize(self, rows: npt.NDArray[Any], importance: _Floats | None, packed: _Codes) -> bool: ...

def fit_integers(
    weight: _Floats,
    importance: _Floats | None,
    *,
    width: int,
    symmetric: bool,
    significant: int,
    smallest: float,
    largest: float,
    signed_scales: bool,
    rounds_products: bool,
    shares: _Floats,
    cuts_ends: bool,
    scale: _Floats,
    zero: _Codes,
) -> None: ...
def row_dots(left: _Floats, right: _Floats, to: _Floats) -> None: ...
def packed_isas() -> list[str]: ...

class PackedMatrix:
    def __init__(self, type: int, blocks: _Codes, columns: int) -> None: ...  # noqa: A002
    def multiply(self, x: _Floats, out: _Floats, isa: str = "", repeats: int = 1) -> None: ...
    @property
    def nbytes(self) -> int: ...

class Engine:
    def __init__(
        self,
        config: dict[str, object],
        tensors: dict[str, tuple[int, int, int, npt.NDArray[np.uint8]]],
        threads: int,
        context: int,
        sequences: int,
        cache: str,
        mapped: bool = False,
    ) -> None: ...
    def step(
        self,
        sequences: npt.NDArray[np.int32],
        tokens: npt.NDArray[np.int32],
        wanted: npt.NDArray[np.int32],
    ) -> _Floats: ...
    def choose(
        self, samplers: Sequence[Sampler], logits: _Floats, recents: Sequence[npt.NDArray[np.int32]]
    ) -> list[int]: ...
    def length(self, sequence: int) -> int: ...
    def truncate(self, sequence: int, length: int) -> None: ...
    def copy(self, source: int, target: int, length: int) -> None: ...
    @property
    def bytes(self) -> int: ...
