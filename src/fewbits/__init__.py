"""fewbits: few bits, same model. The public API; everything else may change.

Names are imported when they are first used, so that ``import fewbits`` takes no time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fewbits.errors import FewbitsError
from fewbits.version import __version__

if TYPE_CHECKING:
    from fewbits.engine.answer import Generation
    from fewbits.engine.model import Model, load
    from fewbits.evaluation.comparison import Evaluation, evaluate
    from fewbits.generation import generate
    from fewbits.inspection import Inspection, inspect
    from fewbits.pipeline.dry_run import DryRun, dry_run
    from fewbits.pipeline.export_imatrix import ImatrixResult, imatrix
    from fewbits.pipeline.plan import frontier, plan
    from fewbits.pipeline.quantize import QuantizeResult, quantize
    from fewbits.pipeline.repack import RepackResult, repack
    from fewbits.planning.frontier import FilePoint
    from fewbits.planning.plan import Plan, TensorChoice
    from fewbits.verification import Verification, verify

_LAZY = {
    "DryRun": "pipeline.dry_run",
    "Evaluation": "evaluation.comparison",
    "FilePoint": "planning.frontier",
    "Generation": "engine.answer",
    "ImatrixResult": "pipeline.export_imatrix",
    "Inspection": "inspection",
    "Model": "engine.model",
    "Plan": "planning.plan",
    "QuantizeResult": "pipeline.quantize",
    "RepackResult": "pipeline.repack",
    "TensorChoice": "planning.plan",
    "Verification": "verification",
    "dry_run": "pipeline.dry_run",
    "evaluate": "evaluation.comparison",
    "frontier": "pipeline.plan",
    "generate": "generation",
    "imatrix": "pipeline.export_imatrix",
    "inspect": "inspection",
    "load": "engine.model",
    "plan": "pipeline.plan",
    "quantize": "pipeline.quantize",
    "repack": "pipeline.repack",
    "verify": "verification",
}

__all__ = [
    "DryRun",
    "Evaluation",
    "FewbitsError",
    "FilePoint",
    "Generation",
    "ImatrixResult",
    "Inspection",
    "Model",
    "Plan",
    "QuantizeResult",
    "RepackResult",
    "TensorChoice",
    "Verification",
    "__version__",
    "dry_run",
    "evaluate",
    "frontier",
    "generate",
    "imatrix",
    "inspect",
    "load",
    "plan",
    "quantize",
    "repack",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'fewbits' has no attribute {name!r}")
    value = getattr(import_module(f"fewbits.{_LAZY[name]}"), name)
    globals()[name] = value
    return value
