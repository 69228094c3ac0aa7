"""GGUF files in llama.cpp, through the C API that the package xllamacpp exports.

Only the fields that are set here are trusted, and only after their default values have been recognised, so a version of
llama.cpp with another struct layout fails loudly instead of reading the wrong field. The key-value cache is float32 and
attention isn't fused: neither is to round what is compared.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import (
    POINTER,
    Structure,
    c_char,
    c_char_p,
    c_float,
    c_int8,
    c_int32,
    c_uint32,
    c_void_p,
)
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

REQUIREMENTS = ("xllamacpp==2026.10.11549",)

GGML_TYPE_F32, GGML_TYPE_F16 = 0, 1
FLASH_ATTENTION_OFF = 0
CONTEXT_UNIT = 256  # llama.cpp rounds the context length up to a multiple of this


class ModelParams(Structure):
    """`llama_model_params`, used with its defaults, so only its size matters (rounded up generously)."""

    _fields_ = [("opaque", c_char * 512)]


class ContextParams(Structure):
    """`llama_context_params`: the head of the struct, then room for what follows."""

    _fields_ = [
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),
        ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("ctx_type", c_int32),
        ("rope_scaling_type", c_int32),
        ("pooling_type", c_int32),
        ("attention_type", c_int32),
        ("flash_attn_type", c_int32),
        ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float),
        ("yarn_ext_factor", c_float),
        ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float),
        ("yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("type_k", c_int32),
        ("type_v", c_int32),
        ("rest", c_char * 512),
    ]


class Batch(Structure):
    """`llama_batch`."""

    _fields_ = [
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", POINTER(c_float)),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    ]


LOG_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, c_char_p, c_void_p)
_log_lines: list[str] = []


def _keep_warning(level: int, text: bytes, user_data: int | None) -> None:
    del user_data
    if level >= 3:  # warnings and errors
        _log_lines.append(text.decode(errors="replace"))


_log = LOG_CALLBACK(_keep_warning)  # kept as long as the library may call it


@cache
def library() -> ctypes.CDLL:
    """The shared library, with signatures of the functions that are called."""
    spec = find_spec("xllamacpp")
    assert spec is not None
    assert spec.submodule_search_locations
    lib = ctypes.CDLL(str(Path(spec.submodule_search_locations[0]) / "xllamacpp.abi3.so"))
    signatures: dict[str, tuple[object, list[object]]] = {
        "llama_backend_init": (None, []),
        "llama_log_set": (None, [LOG_CALLBACK, c_void_p]),
        "llama_model_default_params": (ModelParams, []),
        "llama_context_default_params": (ContextParams, []),
        "llama_model_load_from_file": (c_void_p, [c_char_p, ModelParams]),
        "llama_init_from_model": (c_void_p, [c_void_p, ContextParams]),
        "llama_model_free": (None, [c_void_p]),
        "llama_free": (None, [c_void_p]),
        "llama_model_get_vocab": (c_void_p, [c_void_p]),
        "llama_vocab_n_tokens": (c_int32, [c_void_p]),
        "llama_decode": (c_int32, [c_void_p, Batch]),
        "llama_get_logits": (POINTER(c_float), [c_void_p]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    lib.llama_log_set(_log, None)
    lib.llama_backend_init()
    return lib


def _context_params(tokens: int, context: int | None) -> ContextParams:
    params: ContextParams = library().llama_context_default_params()
    recognised = (
        params.rope_scaling_type == -1
        and params.yarn_ext_factor == -1.0
        and params.flash_attn_type == -1
        and (params.type_k, params.type_v) == (GGML_TYPE_F16, GGML_TYPE_F16)
    )
    if not recognised:
        raise RuntimeError("this xllamacpp lays out llama_context_params differently: update ContextParams")
    needed = max(tokens, context or 0)
    params.n_ctx = -(-needed // CONTEXT_UNIT) * CONTEXT_UNIT
    params.n_batch = params.n_ubatch = tokens
    params.n_threads = params.n_threads_batch = 1
    params.flash_attn_type = FLASH_ATTENTION_OFF
    params.type_k = params.type_v = GGML_TYPE_F32  # the cache must not round what the tests compare
    return params


class LlamaCpp:
    """A GGUF file loaded in llama.cpp; use it in a `with` block."""

    def __init__(self, path: Path) -> None:
        self.lib = library()
        _log_lines.clear()
        self.model = self.lib.llama_model_load_from_file(
            str(path).encode(), self.lib.llama_model_default_params()
        )
        if not self.model:
            raise RuntimeError(f"llama.cpp can't load {path}: " + "".join(_log_lines[-6:]))
        self.vocab = self.lib.llama_model_get_vocab(self.model)

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(self, *exception: object) -> None:
        self.lib.llama_model_free(self.model)

    def logits(self, tokens: Sequence[int], context: int | None = None) -> npt.NDArray[np.float32]:
        """Logits after every token, float32 [tokens, vocabulary].

        `context` is the length that the context is made for (llama.cpp chooses between the long and the
        short rope factors by it), at least the number of tokens; rounded up to a multiple of 256.
        """
        handle = self._context(len(tokens), context)
        try:
            return self._decode(handle, tokens, 0)
        finally:
            self.lib.llama_free(handle)

    def continuation(self, tokens: Sequence[int], count: int) -> list[int]:
        """The most likely tokens that follow, one after another from the cache."""
        handle = self._context(len(tokens), len(tokens) + count)
        try:
            found: list[int] = []
            read = list(tokens)
            for _ in range(count):
                last = self._decode(handle, read, len(tokens) + len(found) - 1 if found else 0)[-1]
                read = [int(last.argmax())]
                found += read
            return found
        finally:
            self.lib.llama_free(handle)

    def _context(self, tokens: int, context: int | None) -> int:
        handle = self.lib.llama_init_from_model(self.model, _context_params(tokens, context))
        if not handle:
            raise RuntimeError("llama.cpp can't make a context: " + "".join(_log_lines[-6:]))
        return int(handle)

    def _decode(self, handle: int, tokens: Sequence[int], first: int) -> npt.NDArray[np.float32]:
        """Logits of tokens at positions from `first` on, float32 [tokens, vocabulary]."""
        n = len(tokens)
        sequence = (c_int32 * 1)(0)
        batch = Batch(
            n,
            (c_int32 * n)(*tokens),
            None,
            (c_int32 * n)(*range(first, first + n)),
            (c_int32 * n)(*[1] * n),
            (POINTER(c_int32) * n)(*[ctypes.cast(sequence, POINTER(c_int32))] * n),
            (c_int8 * n)(*[1] * n),
        )
        status = self.lib.llama_decode(handle, batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}: " + "".join(_log_lines[-6:]))
        vocabulary = self.lib.llama_vocab_n_tokens(self.vocab)
        flat = np.ctypeslib.as_array(self.lib.llama_get_logits(handle), (n * vocabulary,))
        return flat.reshape(n, vocabulary).copy()


def logits(model: str, tokens: list[int]) -> npt.NDArray[np.float32]:
    """float32 [T, V]."""
    with LlamaCpp(Path(model)) as loaded:
        return loaded.logits(tokens)


def generate(model: str, tokens: list[int], count: int) -> list[int]:
    """Greedy, one token at a time from llama.cpp's cache."""
    with LlamaCpp(Path(model)) as loaded:
        return loaded.continuation(tokens, count)
