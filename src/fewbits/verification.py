"""A quantized model loaded and run by its own runtime, compared with the original and with our own numbers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fewbits.checkpoint.checkpoint import Checkpoint
from fewbits.checkpoint.converted import Description, read_description, read_vectors
from fewbits.checkpoint.source import open_checkpoint, open_stored
from fewbits.errors import EvaluationError
from fewbits.evaluation.memory import available_memory, require_memory
from fewbits.evaluation.quality import Quality, position_statistics, quality
from fewbits.evaluation.runtime_distance import Allowance, allowance
from fewbits.evaluation.text import read_text
from fewbits.export.converters import find_converter, require_packages
from fewbits.export.registry import container_of
from fewbits.language_model.packages import require_models_extra
from fewbits.progress import Progress, Silent
from fewbits.runtimes.drive import package_of, versions_of
from fewbits.runtimes.process import DEFAULT_TIMEOUT, Answer, find_python, run_runtime
from fewbits.runtimes.registry import requirements_of
from fewbits.targets.registry import target_of

if TYPE_CHECKING:
    from fewbits.evaluation.language_model import LanguageModel
    from fewbits.language_model.text_tokenizer import TextTokenizer

Floats = npt.NDArray[np.float32]
DEFAULT_TOKENS = 128
_SHORTEST = 8
# Characters read of a text for each token that is wanted: no tokenizer has longer ones on average.
_CHARACTERS = 20


@dataclass(frozen=True)
class Verification:
    """What `verify` found; KL divergences are means in nats per token.

    Attributes:
        passed: whether the runtime computes what fewbits means, by `evaluation.runtime_distance`.
        artifact: what was loaded.
        against: the original.
        container: of the artifact.
        runtime: that loaded it.
        versions: of its packages.
        untested: those of them that are other versions than fewbits was tested with.
        python: the interpreter it ran in.
        arithmetic: dtype of its activations.
        kl_runtime: of the runtime's predictions from the original's.
        kl_runtime_error: one standard error of it.
        kl_weights: of our dequantized weights' predictions from the original's.
        kl_between: of the runtime's predictions from our weights'.
        allowed: the most that `kl_between` may be, by what it is for.
        top1_original: share of positions where the runtime and the original find the same token most likely.
        top1_weights: the same of the runtime and our weights.
        largest_difference: of the runtime's logits from those of our weights.
        logits_deviation: standard deviation of the latter.
        tokens: positions compared.
        text: name of the text.
        text_sha256: of the text, hexadecimal.
        seconds: wall time.
    """

    passed: bool
    artifact: str
    against: str
    container: str
    runtime: str
    versions: Mapping[str, str]
    untested: tuple[str, ...]
    python: str
    arithmetic: str
    kl_runtime: float
    kl_runtime_error: float
    kl_weights: float
    kl_between: float
    allowed: Allowance
    top1_original: float
    top1_weights: float
    largest_difference: float
    logits_deviation: float
    tokens: int
    text: str
    text_sha256: str
    seconds: float

    def describe(self) -> str:
        """For a person."""
        parts = f"{self.allowed.quantization:.1e} for the quantization, {self.allowed.arithmetic:.1e} for "
        parts += self.arithmetic
        if self.allowed.activations:
            parts += f", {self.allowed.activations:.1e} for rounded activations or keys and values"
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        rows = (
            ("runtime", f"{self.runtime} ({versions}), {self.container}"),
            (
                "KL divergence",
                f"{self.kl_runtime:.6f} ± {self.kl_runtime_error:.6f} nats per token of the runtime from the original",
            ),
            ("  our weights", f"{self.kl_weights:.6f} from the original"),
            ("  between them", f"{self.kl_between:.2e}; allowed {self.allowed.total:.2e} ({parts})"),
            (
                "same top token",
                f"{self.top1_original:.2%} as the original, {self.top1_weights:.2%} as our weights",
            ),
            (
                "logits",
                f"differ by at most {self.largest_difference:.4g}; deviation {self.logits_deviation:.3g}",
            ),
            ("text", f"{self.tokens} positions of {self.text}, SHA-256 {self.text_sha256[:12]}…"),
        )
        lines = [f"{name:<15} {value}" for name, value in rows]
        lines += [f"note: {package}" for package in self.untested]
        verdict = "passed: the runtime computes what fewbits means"
        return "\n".join([*lines, verdict if self.passed else "FAILED: the runtime computes something else"])


def verify(
    artifact: str | Path,
    against: str | Path,
    *,
    runtime: str | None = None,
    python: str | Path | None = None,
    text: str | Path | None = None,
    tokens: int = DEFAULT_TOKENS,
    timeout: float = DEFAULT_TIMEOUT,
    progress: Progress | None = None,
) -> Verification:
    """Load an artifact in its runtime, run a text, and compare; see `evaluation.runtime_distance` for the rule.

    Args:
        artifact: what fewbits made; it says by itself which container it is.
        against: the model it was made from.
        runtime: which of the container's; None: the first that is installed.
        python: interpreter or environment of the runtime; None for this one.
        text: UTF-8 file; None for a text that comes with Python.
        tokens: of it, in one sequence.
        timeout: seconds that the runtime may take.
        progress: receives what is being done.

    Raises:
        RuntimeFailedError: the runtime isn't installed, or can't load or run the artifact.
        EvaluationError: the models or the text can't be compared.
        CheckpointError: a model can't be read.
        MissingExtraError: torch or transformers isn't installed here.
    """
    began = time.monotonic()
    progress = progress or Silent()
    path = Path(artifact).expanduser()
    described = read_description(path) if path.is_dir() else None
    container = described.container if described else container_of(open_stored(path))
    if container is None:
        raise EvaluationError(
            f"{artifact} isn't quantized in a container that fewbits writes",
            action="Give a file or folder that fewbits made",
        )
    chosen = _runtime(container, runtime, python)
    find_python(python)
    passage = read_text(text)
    require_models_extra("verifying")
    progress.stage("verifying", 3, "models")
    original = run_original(str(against), passage.text, tokens)
    progress.advance(1, "the original")
    answer = run_runtime(chosen, path, original.ids, python=python, timeout=timeout)
    progress.advance(1, chosen)
    computed = _computed(_ours(path, described, original), original.ids, answer)
    progress.advance(1, "our weights")
    told = _compared(original, computed, answer)
    return Verification(
        artifact=str(artifact), against=str(against), container=container, runtime=chosen,
        versions=answer.versions, untested=_untested(chosen, answer.versions), python=find_python(python),
        arithmetic=answer.arithmetic, text=passage.name, text_sha256=passage.sha256,
        seconds=round(time.monotonic() - began, 3), **told,
    )  # fmt: skip


def _runtime(container: str, asked: str | None, python: str | Path | None) -> str:
    """The runtime to run: what was asked for, or the first that is installed here, or the first."""
    drivers = target_of(container).drivers
    if not drivers or (asked is not None and asked not in drivers):
        raise EvaluationError(
            f"no such runtime for {container}", found=asked or "none that fewbits can run",
            allowed=", ".join(drivers) or None,
            action="fewbits evaluate computes with the same numbers" if not drivers else "",
        )  # fmt: skip
    if asked is None and python is None:
        return next((d for d in drivers if None not in versions_of(requirements_of(d)).values()), drivers[0])
    return asked or drivers[0]


def _untested(runtime: str, versions: Mapping[str, str]) -> tuple[str, ...]:
    """Packages of other versions than those that the driver names."""
    pins = {package_of(r): r.partition("==")[2] for r in requirements_of(runtime) if "==" in r}
    return tuple(
        f"{package} {version}, where fewbits was tested with {pins[package]}"
        for package, version in versions.items()
        if package in pins and version.partition("+")[0] != pins[package]
    )


@dataclass(frozen=True)
class Original:
    """The model to compare with: its directory or file, its tokenizer, tokens of the text, and its logits [T, V]."""

    checkpoint: Checkpoint
    tokenizer: TextTokenizer
    ids: tuple[int, ...]
    logits: Floats


@lru_cache(1)  # one original is compared with many artifacts
def run_original(against: str, text: str, count: int) -> Original:
    """Run the original on the beginning of a text.

    Args:
        against: file or directory.
        text: itself.
        count: tokens, with the first that the model wants before every text.

    Raises:
        EvaluationError: too many or too few tokens for the model or the text.
    """
    from fewbits.evaluation.language_model import load_language_model

    checkpoint = open_checkpoint(against)
    require_memory([checkpoint], available_memory())
    model = load_language_model(checkpoint, "float")
    limit = model.context_limit
    if count < _SHORTEST or (limit is not None and count > limit):
        allowed = f"{_SHORTEST} or more" + ("" if limit is None else f", up to {limit}")
        raise EvaluationError("--tokens is out of range", found=count, allowed=allowed)
    tokenizer = model.tokenizer
    ids = tokenizer.encode(text[: _CHARACTERS * count], markup=False)
    if tokenizer.add_bos and tokenizer.bos_id is not None:
        ids.insert(0, tokenizer.bos_id)
    if len(ids) < count:
        raise EvaluationError(
            "the text is too short", found=f"{len(ids)} tokens", allowed=f"{count} or more",
            action="Give a longer text, or fewer --tokens",
        )  # fmt: skip
    ids = ids[:count]
    return Original(checkpoint, tokenizer, tuple(ids), _logits(model, ids))


def _ours(path: Path, described: Description | None, original: Original) -> LanguageModel:
    """The model with the artifact's weights as fewbits decodes them."""
    from fewbits.evaluation.language_model import language_model_of, load_language_model

    if described is None:
        return load_language_model(open_checkpoint(path), "runtime", kv_cache=None)
    formats = {name: tensor.format for name, tensor in described.tensors.items()}
    return language_model_of(_converted(path, described, original.checkpoint), original.tokenizer, formats)


def _converted(path: Path, described: Description, original: Checkpoint) -> Checkpoint:
    """What a runtime's library wrote as a directory's tensors; the original's where it doesn't tell."""
    converter = find_converter(described.container)
    if converter is None:
        raise EvaluationError(f"this version of fewbits can't read {path}", found=described.container)
    require_packages(converter)
    found = {**read_vectors(path), **converter.weights(path)}
    lacking = [name for name in described.tensors if name not in found]
    if lacking and described.metadata.get("fewbits.folds.hash"):
        raise EvaluationError(
            f"{path} can't be compared: its channels were rescaled, and {described.container} doesn't tell all weights",
            found=f"{len(lacking)} that can't be read, such as {lacking[0]}",
            action="Quantize with --no-fold to verify it",
        )  # fmt: skip
    if unknown := [name for name in lacking if name not in original.tensors]:
        raise EvaluationError(f"{original.path} isn't what {path} was made from", found=f"no {unknown[0]}")
    tensors = {name: found.get(name) or original.tensors[name] for name in described.tensors}
    return replace(original, path=path, tensors=tensors, config=described.config)


def predictions_apart(first: Floats, second: Floats, ids: Sequence[int]) -> Quality:
    """How far the second's predictions are from the first's.

    Args:
        first: logits after each token, [T, V].
        second: the same of the other model.
        ids: the T tokens; what follows the last isn't known, so T - 1 positions count.
    """
    following = np.array(ids[1:], np.int64)
    return quality(position_statistics(first[:-1], second[:-1], following))


@dataclass(frozen=True)
class _Computed:
    """Logits of our weights: as the runtime rounds what they meet, as it is, and in the runtime's dtype."""

    meant: Floats
    alone: Floats
    coarse: Floats


def _computed(ours: LanguageModel, ids: Sequence[int], answer: Answer) -> _Computed:
    arithmetic = answer.arithmetic
    if not answer.rounds_activations:
        ours = ours.with_float_activations()
    if answer.kv_cache:
        ours = ours.with_kv_cache(answer.kv_cache)
    meant = _logits(ours, ids)
    rounds = ours.activations == "runtime" or ours.kv_cache is not None
    alone = _logits(ours.with_float_activations().with_float_kv_cache(), ids) if rounds else meant
    coarse = alone if arithmetic == "float32" else _logits(ours.in_arithmetic(arithmetic), ids)
    return _Computed(meant, alone, coarse)


def _logits(model: LanguageModel, ids: Sequence[int]) -> Floats:
    """float32 [T, V]."""
    return np.concatenate(list(model.logits(ids, 0)))


def _compared(original: Original, ours: _Computed, answer: Answer) -> dict[str, Any]:
    """The figures of a `Verification`."""
    vocabulary = original.logits.shape[1]
    if answer.logits.shape[1] < vocabulary:
        raise EvaluationError(
            "the runtime has fewer tokens than the original",
            found=answer.logits.shape[1],
            allowed=vocabulary,
        )
    runtime = np.ascontiguousarray(answer.logits[:, :vocabulary])  # runtimes may pad the vocabulary

    def distance(first: Floats, second: Floats) -> Quality:
        return predictions_apart(first, second, original.ids)

    from_original, between = distance(original.logits, runtime), distance(ours.meant, runtime)
    weights = distance(original.logits, ours.meant).kl_mean
    arithmetic = 0.0 if ours.coarse is ours.alone else distance(ours.alone, ours.coarse).kl_mean
    activations = 0.0 if ours.alone is ours.meant else distance(ours.alone, ours.meant).kl_mean
    allowed = allowance(weights, arithmetic, activations)
    return {
        "passed": between.kl_mean <= allowed.total,
        "kl_runtime": from_original.kl_mean,
        "kl_runtime_error": from_original.kl_mean_error,
        "kl_weights": weights,
        "kl_between": between.kl_mean,
        "allowed": allowed,
        "top1_original": from_original.top1_agreement,
        "top1_weights": between.top1_agreement,
        "largest_difference": float(np.abs(runtime - ours.meant).max()),
        "logits_deviation": float(ours.meant.std()),
        "tokens": between.tokens,
    }
