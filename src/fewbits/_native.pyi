import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float32]

def isa() -> str: ...
def visit_codes(
    values: _Floats,
    ranks: npt.NDArray[np.uint8],
    grids: _Floats,
    gradient: _Floats,
    outputs: _Floats,
    hessian: _Floats,
    response: _Floats,
) -> int: ...
