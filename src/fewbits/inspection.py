"""What is in a model file: tensors, formats, exact bits per weight, metadata, and how it was made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from fewbits.checkpoint.checkpoint import Checkpoint, SizedTensor
from fewbits.checkpoint.converted import Description, read_description
from fewbits.checkpoint.fp8 import is_scale
from fewbits.checkpoint.gguf_cursor import GgufArray
from fewbits.checkpoint.hf_directory import quantization_method, unpacked_weights
from fewbits.checkpoint.safetensors import read_safetensors_header
from fewbits.checkpoint.source import open_stored

PROVENANCE = "fewbits."
_SHOWN_ITEMS = 8
_SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class TensorSummary:
    """One tensor as it is stored.

    Attributes:
        name: its name in the file.
        shape: in NumPy's order.
        format: a block format or a dtype.
        bits_per_weight: exact, scales of the block format included; 0 for a tensor without numbers.
        nbytes: in the file, padding not counted.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    bits_per_weight: float
    nbytes: int


@dataclass(frozen=True)
class FormatSummary:
    """All tensors of one format: how many, their parameters, bytes, and exact bits per weight."""

    format: str
    tensors: int
    parameters: int
    nbytes: int
    bits_per_weight: float


@dataclass(frozen=True)
class Fallback:
    """A tensor whose rows the requested format's block doesn't divide, and the format it got instead."""

    tensor: str
    requested: str
    format: str


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    Attributes:
        path: the file or the directory.
        container: ``gguf``, ``safetensors`` or ``onnx``, or the name of what a runtime's library wrote.
        architecture: as the file names it; empty when it doesn't.
        parameters: numbers in all tensors; scales that are tensors of their own aren't counted.
        nbytes: of all tensors, scales included.
        file_bytes: of all files with tensors, headers and padding included.
        bits_per_weight: 8 * nbytes / parameters.
        formats: by bytes, largest first.
        tensors: in file order.
        metadata: what the file says about itself; long arrays and texts are abbreviated.
        provenance: the keys under ``fewbits.``, its plan parsed.
        fallbacks: tensors that didn't get the format asked for.
        warnings: e.g. that the model is quantized already.
    """

    path: str
    container: str
    architecture: str
    parameters: int
    nbytes: int
    file_bytes: int
    bits_per_weight: float
    formats: tuple[FormatSummary, ...]
    tensors: tuple[TensorSummary, ...]
    metadata: Mapping[str, Any]
    provenance: Mapping[str, Any]
    fallbacks: tuple[Fallback, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> str:
        """One JSON object on one line; numbers that JSON lacks (NaN, infinity) become strings."""
        return json.dumps(_finite(asdict(self)), allow_nan=False)


def inspect(path: str | Path) -> Inspection:
    """Read the headers of a model's files, and nothing of their tensors.

    Raises:
        CheckpointError: nothing there, or damaged.
        HubError: a hub id that is neither cached nor reachable.
    """
    if (described := _described(path)) is not None:
        return _of_converted(Path(path).expanduser(), described)
    stored = open_stored(path)
    unpacked = unpacked_weights(stored)
    found = stored.tensors if unpacked is None else unpacked
    tensors = tuple(_summary(t) for t in found.values() if isinstance(t, SizedTensor))
    counted = _without_scales(tensors)
    parameters = sum(prod(t.shape) for t in counted)
    nbytes = sum(t.nbytes for t in tensors)
    metadata = _metadata(stored)
    provenance = _provenance(metadata)
    method = quantization_method(stored) if stored.container == "safetensors" else None
    detail = "" if unpacked else ": where it packs weights, counts are of stored numbers"
    packed = (f"quantized by {method}{detail}",) if method else ()
    return Inspection(
        path=str(stored.path),
        container=stored.container,
        architecture=_architecture(stored),
        parameters=parameters,
        nbytes=nbytes,
        file_bytes=sum(f.stat().st_size for f in stored.files),
        bits_per_weight=8 * nbytes / parameters if parameters else 0.0,
        formats=_formats(tensors),
        tensors=tensors,
        metadata={k: _abbreviated(v) for k, v in metadata.items() if not k.startswith(PROVENANCE)},
        provenance=provenance,
        fallbacks=tuple(_fallbacks(provenance.get("fewbits.plan"))),
        warnings=stored.warnings + packed,
    )


def _described(path: str | Path) -> Description | None:
    folder = Path(path).expanduser()
    return read_description(folder) if folder.is_dir() else None


def _of_converted(path: Path, described: Description) -> Inspection:
    """Of a folder that its runtime's library wrote: as its tensors were quantized."""
    tensors = tuple(
        TensorSummary(
            name, t.shape, t.format, 8 * t.nbytes / prod(t.shape) if prod(t.shape) else 0.0, t.nbytes
        )
        for name, t in described.tensors.items()
    )
    nbytes, parameters = sum(t.nbytes for t in tensors), described.weights
    provenance = _provenance(described.metadata)
    named = described.config.get("architectures") or [described.config.get("model_type", "")]
    return Inspection(
        path=str(path), container=described.container, architecture=str(named[0]), parameters=parameters,
        nbytes=nbytes, file_bytes=sum(described.files.values()),
        bits_per_weight=8 * nbytes / parameters if parameters else 0.0, formats=_formats(tensors),
        tensors=tensors, metadata={k: _abbreviated(v) for k, v in described.config.items()},
        provenance=provenance, fallbacks=tuple(_fallbacks(provenance.get("fewbits.plan"))),
        warnings=(f"only {described.container}'s runtime reads it",),
    )  # fmt: skip


def _summary(tensor: SizedTensor) -> TensorSummary:
    parameters = prod(tensor.shape)
    bits = 8 * tensor.nbytes / parameters if parameters else 0.0
    return TensorSummary(tensor.name, tensor.shape, tensor.dtype, bits, tensor.nbytes)


def _without_scales(tensors: Iterable[TensorSummary]) -> list[TensorSummary]:
    """Tensors that are no scales of an 8-bit weight beside them."""
    weights = {t.name for t in tensors if t.format.startswith("F8")}
    return [t for t in tensors if not (weights and is_scale(t.name))]


def _formats(tensors: Iterable[TensorSummary]) -> tuple[FormatSummary, ...]:
    groups: dict[str, list[TensorSummary]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.format, []).append(tensor)
    summaries = []
    for name, group in groups.items():
        parameters, nbytes = sum(prod(t.shape) for t in group), sum(t.nbytes for t in group)
        bits = 8 * nbytes / parameters if parameters else 0.0
        summaries.append(FormatSummary(name, len(group), parameters, nbytes, bits))
    return tuple(sorted(summaries, key=lambda s: (-s.nbytes, s.format)))


def _metadata(stored: Checkpoint) -> dict[str, Any]:
    if stored.container == "gguf":
        return dict(stored.metadata)
    metadata: dict[str, Any] = {**stored.config, **stored.metadata}
    for file in stored.files if stored.container == "safetensors" else ():
        metadata.update(read_safetensors_header(file).metadata)
    return metadata


def _architecture(stored: Checkpoint) -> str:
    if stored.container == "gguf":
        found = stored.metadata.get("general.architecture", "")
    else:
        named = stored.config.get("architectures")
        found = named[0] if isinstance(named, list) and named else stored.config.get("model_type", "")
    return found if isinstance(found, str) else ""


def _provenance(metadata: Mapping[str, Any]) -> dict[str, Any]:
    found = {k: _abbreviated(v) for k, v in metadata.items() if k.startswith(PROVENANCE)}
    plan = metadata.get("fewbits.plan")
    if isinstance(plan, str):
        try:
            found["fewbits.plan"] = json.loads(plan)
        except (ValueError, RecursionError):
            found["fewbits.plan"] = _abbreviated(plan)  # shown as it is
    return found


def _fallbacks(plan: Any) -> Iterable[Fallback]:
    tensors = plan.get("tensors", plan) if isinstance(plan, dict) else {}
    for name, choice in tensors.items() if isinstance(tensors, dict) else ():
        if isinstance(choice, dict) and choice.get("requested") not in (None, choice.get("format")):
            yield Fallback(name, str(choice["requested"]), str(choice.get("format")))


def _abbreviated(value: Any) -> Any:
    """A value short enough to show: the beginning of long arrays and texts, with their length."""
    if isinstance(value, GgufArray | list):
        items = [_abbreviated(v) for v in value[:_SHOWN_ITEMS]]
        return items if len(value) <= _SHOWN_ITEMS else [*items, f"… {len(value)} in all"]
    if isinstance(value, dict):
        return {str(k): _abbreviated(v) for k, v in value.items()}
    if isinstance(value, str) and len(value) > _SHOWN_CHARACTERS:
        return f"{value[:_SHOWN_CHARACTERS]}… {len(value)} characters in all"
    return value


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and value - value != 0:
        return str(value)
    return value
