"""LiteRT models in ai-edge-litert's interpreter with its default delegate for CPUs, XNNPACK.

The interpreter computes one step; the loop around it, which LiteRT-LM has on devices, is here.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

REQUIREMENTS = ("ai-edge-litert==2.3.0",)
MODEL = "model.tflite"
_CACHE = "kv_cache"
_PREFILL = "prefill_"
# What is added to scores of positions that aren't seen, as LiteRT-LM has it.
_MASKED = np.float32(-0.7 * np.finfo(np.float32).max)


def logits(model: str, tokens: list[int]) -> npt.NDArray[np.float32]:
    """float32 [T, V], token by token through the cache."""
    state = _State(model)
    return np.stack([state.step("decode", [token]) for token in tokens]).astype(np.float32)


def generate(model: str, tokens: list[int], count: int) -> list[int]:
    """Greedy. Whole pieces of the prompt go through the signature for prompts."""
    state = _State(model)
    found: list[int] = []
    done = 0
    while len(tokens) - 1 - done >= state.piece:
        state.step(f"{_PREFILL}{state.piece}", tokens[done : done + state.piece])
        done += state.piece
    for token in tokens[done:]:
        answer = state.step("decode", [token])
    while len(found) < count:
        found.append(int(answer.argmax()))
        answer = state.step("decode", [found[-1]])
    return found


class _State:
    """One sequence: its cache and its length. `piece`: tokens that the signature for prompts takes."""

    def __init__(self, model: str) -> None:
        self._runners = _load(model)
        inputs = self._runners["decode"].get_input_details()
        self._cache = {n: np.zeros(d["shape"], d["dtype"]) for n, d in inputs.items() if n.startswith(_CACHE)}
        self._length = 0
        self.piece = max(int(n.removeprefix(_PREFILL)) for n in self._runners if n.startswith(_PREFILL))

    def step(self, signature: str, tokens: list[int]) -> Any:
        """Logits after the last of the tokens, float32 [V]; None where the signature gives none."""
        runner = self._runners[signature]
        positions = np.arange(self._length, self._length + len(tokens), dtype=np.int32)
        detail = runner.get_input_details()["mask"]
        seen = np.arange(detail["shape"][-1])[None] <= positions[:, None]
        mask = seen if detail["dtype"] is np.bool_ else np.where(seen, np.float32(0), _MASKED)
        answer = runner(
            tokens=np.array([tokens], np.int32), input_pos=positions, mask=mask[None, None], **self._cache
        )
        self._cache = {name: answer[name] for name in self._cache}
        self._length += len(tokens)
        return answer["logits"][0, -1] if "logits" in answer else None


@cache
def _load(model: str) -> dict[str, Any]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(Path(model) / MODEL), num_threads=1)
    return {name: interpreter.get_signature_runner(name) for name in interpreter.get_signature_list()}
