"""How an artifact was made, written into its own metadata under ``fewbits.*``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fewbits.errors import PlanError
from fewbits.planning.plan import Plan
from fewbits.version import __version__

# Characters that say what tuning came to: as many before it is known, so that everything has its place.
TUNING_WIDTH = 64
PENDING, ASKED_FOR = "pending", "pending, asked for"
NOT_TRIED = "not tried"  # what begins the words where it wasn't


@dataclass(frozen=True)
class Provenance:
    """What decides the bytes of an artifact, besides its plan.

    Attributes:
        source: name of the source, without the folder it lay in.
        source_hash: sha256 over the source's files.
        goal: the budget asked for, as typed.
        effort: fast, balanced or best.
        seed: of everything random.
        calibration: what the calibration text was; empty for effort fast.
        calibration_hash: its sha256.
        tuning: what tuning the finished numbers came to, `PENDING` or `ASKED_FOR` before that; empty if they
            aren't to be tuned.
        folds: sha256 of the factors that channels were rescaled with; empty if none were.
        imatrix: what the importance matrix was; empty without one.
        imatrix_hash: the file's sha256.
        exported: name of the artifact whose numbers were taken over; empty if they were made here.
        exported_hash: sha256 over its files.
        kv_cache: the key-value cache that the artifact has scales for; empty without.
        static_scale: the rule that was asked for to choose scales of activations; empty for the default.
        version: of fewbits.
        plan_data: the choices found in an artifact, unparsed; None before one is made.
    """

    source: str
    source_hash: str
    goal: str
    effort: str
    seed: int
    calibration: str = ""
    calibration_hash: str = ""
    folds: str = ""
    tuning: str = ""
    imatrix: str = ""
    imatrix_hash: str = ""
    exported: str = ""
    exported_hash: str = ""
    kv_cache: str = ""
    static_scale: str = ""
    version: str = __version__
    plan_data: Any = field(default=None, repr=False)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], where: str) -> Provenance:
        """The provenance of an artifact.

        Raises:
            PlanError: `metadata` isn't that of an artifact made by fewbits.
        """
        try:
            return cls(
                source=str(metadata["fewbits.source.name"]),
                source_hash=str(metadata["fewbits.source.hash"]),
                goal=str(metadata["fewbits.goal"]),
                effort=str(metadata["fewbits.effort"]),
                seed=int(metadata["fewbits.seed"]),
                calibration=str(metadata.get("fewbits.calibration.name", "")),
                calibration_hash=str(metadata.get("fewbits.calibration.hash", "")),
                folds=str(metadata.get("fewbits.folds.hash", "")),
                tuning=str(metadata.get("fewbits.tuning", "")).strip(),
                imatrix=str(metadata.get("fewbits.imatrix.name", "")),
                imatrix_hash=str(metadata.get("fewbits.imatrix.hash", "")),
                exported=str(metadata.get("fewbits.export.name", "")),
                exported_hash=str(metadata.get("fewbits.export.hash", "")),
                kv_cache=str(metadata.get("fewbits.kv_cache", "")),
                static_scale=str(metadata.get("fewbits.static_scale", "")),
                plan_data=json.loads(metadata["fewbits.plan"]),
            )
        except (KeyError, ValueError, TypeError) as error:
            raise PlanError(
                f"{where} doesn't say how it was made", found=f"no readable {error} in its metadata",
                allowed="a file that fewbits wrote",
            ) from error  # fmt: skip


def provenance_metadata(provenance: Provenance, plan: Plan) -> dict[str, Any]:
    """The ``fewbits.*`` keys."""
    keys = {
        "fewbits.version": provenance.version,
        "fewbits.source.name": provenance.source,
        "fewbits.source.hash": provenance.source_hash,
        "fewbits.goal": provenance.goal,
        "fewbits.effort": provenance.effort,
        "fewbits.seed": provenance.seed,
        "fewbits.plan": plan.choices_json(),
    }
    if provenance.calibration:
        keys["fewbits.calibration.name"] = provenance.calibration
        keys["fewbits.calibration.hash"] = provenance.calibration_hash
    if provenance.folds:
        keys["fewbits.folds.hash"] = provenance.folds
    if provenance.tuning:
        keys["fewbits.tuning"] = provenance.tuning[:TUNING_WIDTH].ljust(TUNING_WIDTH)
    if provenance.imatrix:
        keys["fewbits.imatrix.name"] = provenance.imatrix
        keys["fewbits.imatrix.hash"] = provenance.imatrix_hash
    if provenance.exported:
        keys["fewbits.export.name"] = provenance.exported
        keys["fewbits.export.hash"] = provenance.exported_hash
    if provenance.kv_cache:
        keys["fewbits.kv_cache"] = provenance.kv_cache
    if provenance.static_scale:
        keys["fewbits.static_scale"] = provenance.static_scale
    return keys
