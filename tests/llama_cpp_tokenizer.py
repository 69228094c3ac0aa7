"""llama.cpp's tokenizer as the oracle: a GGUF file with a vocabulary and no weights, through the C API."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gguf import GGUFWriter

# llama_model_params by value: pointers, sizes, then flags; vocab_only is the first flag. The default flags
# recognise the place, so that another layout fails loudly.
_SIZE, _FLAGS_AT = 512, 72
_DEFAULT_FLAGS = (0, 0, 1, 0, 0)  # vocab_only, check_tensors, use_extra_bufts, no_host, no_alloc

_Log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class _Params(ctypes.Structure):
    _fields_ = [("data", ctypes.c_ubyte * _SIZE)]


_messages: list[str] = []


@_Log
def _log(level: int, text: bytes, user_data: int | None) -> None:
    del user_data
    if level >= 4:
        _messages.append(text.decode(errors="replace"))


@cache
def _library() -> ctypes.CDLL:
    spec = find_spec("xllamacpp")
    assert spec is not None
    assert spec.submodule_search_locations
    lib = ctypes.CDLL(str(Path(spec.submodule_search_locations[0]) / "xllamacpp.abi3.so"))
    pointer, text, integer, flag = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.c_bool
    ids = ctypes.POINTER(integer)
    for name, result, arguments in (
        ("llama_backend_init", None, []),
        ("llama_log_set", None, [_Log, pointer]),
        ("llama_model_default_params", _Params, []),
        ("llama_model_load_from_file", pointer, [text, _Params]),
        ("llama_model_free", None, [pointer]),
        ("llama_model_get_vocab", pointer, [pointer]),
        ("llama_vocab_is_eog", flag, [pointer, integer]),
        ("llama_vocab_n_tokens", integer, [pointer]),
        ("llama_vocab_bos", integer, [pointer]),
        ("llama_vocab_get_add_bos", flag, [pointer]),
        ("llama_tokenize", integer, [pointer, text, integer, ids, integer, flag, flag]),
        ("llama_detokenize", integer, [pointer, ids, integer, text, integer, flag, flag]),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    lib.llama_log_set(_log, None)
    lib.llama_backend_init()
    return lib


class LlamaVocabulary:
    """Vocabulary of a GGUF file as llama.cpp loaded it."""

    def __init__(self, vocab: int) -> None:
        self._lib = _library()
        self._vocab = vocab
        self.size: int = self._lib.llama_vocab_n_tokens(vocab)
        self.bos_id: int = self._lib.llama_vocab_bos(vocab)
        self.add_bos: bool = self._lib.llama_vocab_get_add_bos(vocab)

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        data = text.encode()
        room = len(data) + 16
        ids = (ctypes.c_int32 * room)()
        count = self._lib.llama_tokenize(self._vocab, data, len(data), ids, room, add_special, parse_special)
        assert count >= 0
        return list(ids[:count])

    def decode(self, ids: list[int]) -> str:
        array = (ctypes.c_int32 * len(ids))(*ids)
        buffer = ctypes.create_string_buffer(64 * len(ids) + 64)
        count = self._lib.llama_detokenize(self._vocab, array, len(ids), buffer, len(buffer), False, False)
        assert count >= 0
        return buffer.raw[:count].decode("utf-8", "replace")

    def end_ids(self) -> set[int]:
        return {token for token in range(self.size) if self._lib.llama_vocab_is_eog(self._vocab, token)}


@contextmanager
def llama_vocabulary(path: Path) -> Iterator[LlamaVocabulary]:
    """Load the vocabulary of a GGUF file; weights are neither needed nor read."""
    lib = _library()
    params = lib.llama_model_default_params()
    assert tuple(params.data[_FLAGS_AT : _FLAGS_AT + 5]) == _DEFAULT_FLAGS, "another llama_model_params"
    params.data[_FLAGS_AT] = 1
    _messages.clear()
    model = lib.llama_model_load_from_file(str(path).encode(), params)
    assert model, "".join(_messages)
    try:
        yield LlamaVocabulary(lib.llama_model_get_vocab(model))
    finally:
        lib.llama_model_free(model)


def write_vocabulary(path: Path, metadata: Mapping[str, Any], name: str = "test") -> None:
    """Write a GGUF file that holds nothing but a tokenizer."""
    writer = GGUFWriter(str(path), "llama")
    writer.add_name(name)
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(8)
    writer.add_head_count(1)
    writer.add_feed_forward_length(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(metadata["tokenizer.ggml.tokens"]))
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
