from collections.abc import Sequence

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

# The first seven arguments of a search are the blocks and their grid: weight, importance, group, largest, low, high and
# table. What is found goes to the arrays at the end.
def search_scale(
    weight: _Floats,
    importance: _Floats | None,
    group: int,
    largest: float,
    low: float,
    high: float,
    table: _Floats,
    plain: float,
    places: _Floats,
    refits: int,
    d: _Floats,
) -> None: ...
def search_affine(
    weight: _Floats,
    importance: _Floats | None,
    group: int,
    largest: float,
    low: float,
    high: float,
    table: _Floats,
    steps: _Floats,
    below: _Floats,
    refits: int,
    d: _Floats,
    m: _Floats,
) -> None: ...
def search_super_scale(
    weight: _Floats,
    importance: _Floats | None,
    group: int,
    largest: float,
    low: float,
    high: float,
    table: _Floats,
    places: _Floats,
    super_places: _Floats,
    lowest: float,
    highest: float,
    windows: Sequence[int],
    d: _Floats,
    sub: _Floats,
) -> None: ...
def search_super_affine(
    weight: _Floats,
    importance: _Floats | None,
    group: int,
    largest: float,
    low: float,
    high: float,
    table: _Floats,
    steps: _Floats,
    below: _Floats,
    super_places: _Floats,
    highest: float,
    rounds: int,
    d: _Floats,
    dmin: _Floats,
    sub: _Floats,
    lows: _Floats,
) -> None: ...
def search_group_scale(
    weight: _Floats,
    importance: _Floats | None,
    group: int,
    largest: float,
    low: float,
    high: float,
    table: _Floats,
    places: _Floats,
    lowest: float,
    highest: float,
    window: int,
    d: _Floats,
    sub: _Floats,
) -> None: ...
def search_group_affine(
    weight: _Floats,
    importance: _Floats | None,
    group: int,
    largest: float,
    low: float,
    high: float,
    table: _Floats,
    steps: _Floats,
    below: _Floats,
    highest: float,
    d: _Floats,
    dmin: _Floats,
    sub: _Floats,
    lows: _Floats,
) -> None: ...
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
