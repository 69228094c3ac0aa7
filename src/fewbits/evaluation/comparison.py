"""Evaluate a quantized model against its source, both run side by side chunk by chunk.

As in llama-perplexity: the text is tokenized once and cut into chunks of `context` tokens from its start;
the first token of each chunk is replaced by the beginning-of-text token if the tokenizer adds one; the
second half of each chunk is scored, positions context // 2 … context - 2 predicting the token after them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fewbits.checkpoint.checkpoint import Checkpoint
from fewbits.errors import EvaluationError
from fewbits.evaluation.open_models import open_models
from fewbits.evaluation.quality import (
    Doubles,
    PositionStatistics,
    Quality,
    join,
    position_statistics,
    quality,
)
from fewbits.evaluation.text import EvaluationText, read_text
from fewbits.progress import Progress, Silent

if TYPE_CHECKING:
    from fewbits.evaluation.language_model import Activations
    from fewbits.evaluation.open_models import AnyModel, Runtime

_SMALLEST_CONTEXT = 4
# Share of token ids whose strings may differ between two vocabularies that are otherwise one: converters
# rewrite the names of reserved and added tokens.
_RENAMED = 0.1


@dataclass(frozen=True)
class Evaluation(Quality):
    """What `evaluate` found, and on what.

    Attributes:
        chunks: chunks of text scored.
        context: tokens per chunk.
        text: name of the text.
        text_sha256: SHA-256 of the text in hexadecimal.
        source: path of the original.
        quantized: path of the quantized model.
        activations: of the quantized model: ``runtime`` (rounded as llama.cpp does) or ``float``.
        activations_reference: of the original.
        runtime: what ran the quantized model: ``engine`` (our own) or ``transformers``.
        runtime_reference: what ran the original.
        kv_cache: how the quantized model's keys and values were kept; ``float``: not rounded.
        kv_cache_bytes: bytes that its cache keeps of a token; 0 where it isn't rounded.
        kv_cache_bytes_f16: what they would be in float16.
        kl_mean_float_kv_cache: mean KL divergence of the same model with a cache that isn't rounded, in nats per token;
            None where it isn't anyway.
        seconds: wall time, loading included.
    """

    chunks: int
    context: int
    text: str
    text_sha256: str
    source: str
    quantized: str
    activations: str
    activations_reference: str
    runtime: str
    runtime_reference: str
    kv_cache: str
    kv_cache_bytes: float
    kv_cache_bytes_f16: float
    kl_mean_float_kv_cache: float | None
    seconds: float

    def describe(self) -> str:
        """The figures for people, a line each."""
        rows = (
            ("KL divergence", f"{self.kl_mean:.5f} ± {self.kl_mean_error:.5f} nats per token"),
            ("  99th percentile", f"{self.kl_p99:.4f} ± {self.kl_p99_error:.4f}"),
            ("  median, largest", f"{self.kl_median:.5f}, {self.kl_max:.3f}"),
            ("perplexity", f"{self.perplexity:.4f} ± {self.perplexity_error:.4f}"),
            ("  of the original", f"{self.perplexity_reference:.4f} ± {self.perplexity_reference_error:.4f}"),
            ("  ln of the ratio", f"{self.log_perplexity_ratio:.5f} ± {self.log_perplexity_ratio_error:.5f}"),
            ("top-1 agreement", f"{self.top1_agreement:.2%} ± {self.top1_agreement_error:.2%}"),
            ("RMS of Δp", f"{self.delta_p_rms:.2%} ± {self.delta_p_rms_error:.2%}"),
            ("text", f"{self.text}, SHA-256 {self.text_sha256[:12]}…"),
            ("scored", f"{self.tokens} tokens in {self.chunks} chunks of {self.context}"),
            ("activations", f"{self.activations}; of the original: {self.activations_reference}"),
            ("run by", f"{self.runtime}; the original: {self.runtime_reference}"),
            ("key-value cache", self._describe_cache()),
        )
        return "\n".join(f"{name:<18} {value}" for name, value in rows)

    def _describe_cache(self) -> str:
        if self.kl_mean_float_kv_cache is None:
            return f"{self.kv_cache} (not rounded)"
        size = f"{self.kv_cache_bytes:,.0f} bytes per token, {self.kv_cache_bytes_f16:,.0f} as f16"
        return f"{self.kv_cache}: {size}; KL without rounding it {self.kl_mean_float_kv_cache:.5f}"


def evaluate(
    quantized: str | Path,
    against: str | Path,
    text: str | Path | None = None,
    context: int = 512,
    chunks: int = 24,
    threads: int | None = None,
    activations: Activations = "runtime",
    kv_cache: str | None = None,
    runtime: Runtime = "auto",
    progress: Progress | None = None,
) -> Evaluation:
    """Compare a quantized model's predictions with its source's; see quality.py for the definitions.

    Args:
        quantized: GGUF file, Hugging Face directory or hub id.
        against: the original, in any of these.
        text: UTF-8 file; None for a text that comes with Python.
        context: tokens per chunk.
        chunks: chunks to score; fewer if the text is shorter.
        threads: CPU threads; None for all cores.
        activations: ``runtime`` rounds the inputs of a GGUF file's linear maps as llama.cpp does, ``float``
            evaluates its weights alone. Both models alike.
        kv_cache: how the quantized model keeps keys and values, as ``q8_0`` or ``q8_0/q4_0`` (see kv_cache.py),
            ``float`` for not rounded; None for what its config says, else not rounded. The original's never are.
        runtime: ``engine``, ``transformers``, or ``auto``: the engine for GGUF files that it knows, where activations
            are those of the runtime and keys and values aren't rounded.
        progress: told of chunks done and the mean KL divergence so far.

    Raises:
        EngineError: the engine can't run a model, and was asked for.
        EvaluationError: the models or the text can't be compared, or memory is short.
        CheckpointError: a model can't be read.
        MissingExtraError: torch or transformers isn't installed, and the engine doesn't know a model.
    """
    started = time.monotonic()
    progress = progress or Silent()
    _require_settings(context, chunks, threads, activations, runtime)
    passage = read_text(text)
    from fewbits.checkpoint.source import open_checkpoint

    checkpoints = open_checkpoint(quantized), open_checkpoint(against)
    _refuse_calibration_text(checkpoints[0], passage)
    with open_models(checkpoints, context, threads, activations, kv_cache, runtime) as (model, reference):
        sizes = (0.0, 0.0) if model.kv_cache is None else model.cache_bytes()
        pieces = _chunks(reference, passage, context, chunks)
        _require_same_vocabulary(model, reference, pieces)
        positions, without = _compare(model, reference, pieces, progress)
    return Evaluation(
        **asdict(quality(positions)),
        chunks=len(pieces),
        context=context,
        text=passage.name,
        text_sha256=passage.sha256,
        source=str(against),
        quantized=str(quantized),
        activations=model.activations,
        activations_reference=reference.activations,
        runtime=model.runtime,
        runtime_reference=reference.runtime,
        kv_cache="float" if model.kv_cache is None else model.kv_cache.name,
        kv_cache_bytes=sizes[0],
        kv_cache_bytes_f16=sizes[1],
        kl_mean_float_kv_cache=without,
        seconds=time.monotonic() - started,
    )


def _require_settings(context: int, chunks: int, threads: int | None, activations: str, runtime: str) -> None:
    if context < _SMALLEST_CONTEXT:
        raise EvaluationError(
            "the context is too short", found=context, allowed=f"{_SMALLEST_CONTEXT} or more"
        )
    if chunks < 1:
        raise EvaluationError(
            "there must be something to score", found=f"{chunks} chunks", allowed="1 or more"
        )
    if activations not in ("runtime", "float"):
        raise EvaluationError("unknown activations", found=repr(activations), allowed="runtime, float")
    if runtime not in ("auto", "engine", "transformers"):
        raise EvaluationError("unknown runtime", found=repr(runtime), allowed="auto, engine, transformers")
    if threads is not None and threads < 1:
        raise EvaluationError("there must be a thread to run on", found=threads, allowed="1 or more")


def _refuse_calibration_text(checkpoint: Checkpoint, passage: EvaluationText) -> None:
    """A model evaluated on the text it was calibrated on looks better than it is."""
    recorded = str(_provenance(checkpoint).get("fewbits.calibration.hash", ""))
    if recorded and recorded.removeprefix("sha256:") == passage.sha256:
        raise EvaluationError(
            f"{checkpoint.path} was calibrated on this very text",
            found=f"{passage.name} (SHA-256 {passage.sha256[:12]}…)",
            action="Give another text with --text, so that the result says something about new text",
        )


def _provenance(checkpoint: Checkpoint) -> Mapping[str, Any]:
    return {**checkpoint.config, **checkpoint.metadata}


def _chunks(reference: AnyModel, passage: EvaluationText, context: int, chunks: int) -> list[list[int]]:
    """Token ids of each chunk, before the first is replaced by the beginning-of-text token."""
    limit = reference.context_limit
    if limit is not None and context > limit:
        raise EvaluationError(
            f"{reference.name} isn't made for texts this long",
            found=f"context {context}",
            allowed=f"up to {limit}",
        )
    tokenizer = reference.tokenizer
    ids = tokenizer.encode(passage.text, markup=False)
    if tokenizer.add_bos and tokenizer.bos_id is not None:
        ids.insert(0, tokenizer.bos_id)
    count = min(chunks, len(ids) // context)
    if not count:
        raise EvaluationError(
            f"the text {passage.name} is too short for one chunk",
            found=f"{len(ids)} tokens",
            allowed=f"{context} or more",
            action="Give a longer text, or a smaller --context",
        )
    return [ids[i * context : (i + 1) * context] for i in range(count)]


def _require_same_vocabulary(model: AnyModel, reference: AnyModel, chunks: list[list[int]]) -> None:
    if model.vocabulary != reference.vocabulary:
        raise EvaluationError(
            f"{model.name} and {reference.name} have different vocabularies",
            found=f"{model.vocabulary} and {reference.vocabulary} tokens",
            action="Give the model that the quantized one was made from",
        )
    ours, theirs = model.tokenizer.pieces(), reference.tokenizer.pieces()
    differing = [
        i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b and None not in (a, b)
    ]
    read = set(differing) & {token for chunk in chunks for token in chunk}
    if read or len(differing) > _RENAMED * reference.vocabulary:
        token = min(read or differing)
        pair = f"{ours[token]!r} and {theirs[token]!r}"
        raise EvaluationError(
            f"{model.name} and {reference.name} have different vocabularies",
            found=f"{len(differing)} tokens that differ, such as {token}: {pair}",
            action="Give the model that the quantized one was made from",
        )


def _compare(
    model: AnyModel, reference: AnyModel, chunks: list[list[int]], progress: Progress
) -> tuple[PositionStatistics, float | None]:
    """Statistics of all positions, and the mean KL divergence without rounding of keys and values, if there is any."""
    progress.stage("evaluate", len(chunks), "chunks")
    tokenizer = reference.tokenizer
    unrounded = None if model.kv_cache is None else model.with_float_kv_cache()
    pieces: list[PositionStatistics] = []
    without: list[Doubles] = []
    for chunk in chunks:
        first = len(chunk) // 2
        following = np.array(chunk[first + 1 :])
        begun = (
            [tokenizer.bos_id, *chunk[1:]] if tokenizer.add_bos and tokenizer.bos_id is not None else chunk
        )
        # The last token is only predicted, never read.
        read = [token for token in begun[:-1] if token is not None]
        plain = repeat(None) if unrounded is None else unrounded.logits(read, first)
        triples = zip(reference.logits(read, first), model.logits(read, first), plain, strict=False)
        done = 0
        for original, approximate, other in triples:
            stop = done + len(original)
            pieces.append(position_statistics(original, approximate, following[done:stop]))
            if other is not None:
                without.append(position_statistics(original, other, following[done:stop]).kl)
            done = stop
        progress.advance(1, f"KL {np.concatenate([piece.kl for piece in pieces]).mean():.4f}")
    return join(pieces), float(np.concatenate(without).mean()) if without else None
