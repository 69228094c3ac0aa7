"""llama.cpp as the oracle: logits and token ids of a GGUF file; what `fewbits verify` runs, and its tokenizer."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_bool, c_char_p, c_int32, c_void_p
from functools import cache

import numpy as np
import numpy.typing as npt

from fewbits.runtimes import llama_cpp_driver


@cache
def library() -> ctypes.CDLL:
    """llama.cpp's library with its tokenizer."""
    lib = llama_cpp_driver.library()
    lib.llama_tokenize.restype = c_int32
    lib.llama_tokenize.argtypes = [
        c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool,
    ]  # fmt: skip
    return lib


class LlamaCpp(llama_cpp_driver.LlamaCpp):
    """A GGUF file loaded in llama.cpp; use it in a `with` block."""

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """Token ids of a text."""
        data = text.encode()
        room = len(data) + 16
        ids = (c_int32 * room)()
        count = library().llama_tokenize(
            self.vocab,
            data,
            len(data),
            ctypes.cast(byref(ids), POINTER(c_int32)),
            room,
            add_special,
            parse_special,
        )
        if count < 0:
            raise RuntimeError(f"llama_tokenize needs {-count} ids")
        return list(ids[:count])


def log_softmax(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Log-probabilities in float64, over the last axis."""
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))
