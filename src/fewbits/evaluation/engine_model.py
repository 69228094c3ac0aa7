"""Models of GGUF files that are evaluated in the engine: with 8-bit activations, and keys and values in float16.

Much faster than transformers in float32, and neither it nor PyTorch is imported.

Dimension letters: T tokens of a text, S positions in one pass, V tokens in the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fewbits.checkpoint.checkpoint import Checkpoint, Floats
from fewbits.engine.engine import Engine, open_engine
from fewbits.language_model.text_tokenizer import TextTokenizer, open_tokenizer

# Logits held at once by one model: 128 MB.
LOGITS = 1 << 25
_STEP = 512


@dataclass(frozen=True)
class EngineModel:
    """What `LanguageModel` is for transformers.

    Attributes:
        name: file name.
        tokenizer: of the file.
        vocabulary: V, logits per position.
        context_limit: tokens the model is made for.
        activations: always ``runtime``.
        kv_cache: None: not rounded but to float16.
        runtime: always ``engine``.
    """

    name: str
    tokenizer: TextTokenizer
    vocabulary: int
    context_limit: int | None
    _engine: Engine
    activations: str = "runtime"
    kv_cache: None = None
    runtime: str = "engine"

    def logits(self, tokens: Sequence[int], first: int) -> Iterator[Floats]:
        """Logits at positions first … T-1 of a text of its own, in order, as pieces of float32 [S, V].

        Pieces hold at most 128 MB; the text must be no longer than the engine's context.
        """
        self._engine.truncate(0, 0)
        for start in range(0, first, _STEP):
            self._read(tokens[start : min(start + _STEP, first)], wanted=False)
        step = max(1, LOGITS // self.vocabulary)
        for start in range(first, len(tokens), step):
            yield self._read(tokens[start : start + step], wanted=True)

    def _read(self, tokens: Sequence[int], *, wanted: bool) -> Floats:
        return self._engine.step([0] * len(tokens), tokens, range(len(tokens)) if wanted else ())


def open_engine_model(checkpoint: Checkpoint, context: int, threads: int | None) -> EngineModel:
    """A GGUF file in the engine, for texts of up to `context` tokens.

    Raises:
        EngineError: the engine doesn't know its architecture or types.
        EvaluationError: the file's tokenizer can't be built.
    """
    engine = open_engine(checkpoint.path, threads=threads, context=context)
    return EngineModel(
        name=checkpoint.path.name,
        tokenizer=open_tokenizer(checkpoint),
        vocabulary=engine.vocabulary,
        context_limit=engine.description.trained_context,
        _engine=engine,
    )
