"""Facts about GGUF files."""

from fewbits.targets.hardware import CPUS, FROM_TURING
from fewbits.targets.target import Runtime, Scheme, Target

_LLAMA_CPP = "https://github.com/ggml-org/llama.cpp"
_BACKENDS = (*FROM_TURING, "amd-gpu", "intel-gpu", "apple", *CPUS)

TARGET = Target(
    "gguf",
    "one file for llama.cpp and what is built on it",
    runtimes=(
        Runtime(
            "llama.cpp", "CPUs; NVIDIA, AMD, Intel and Apple GPUs; phones", driver="llama.cpp", row="gguf",
            sources=(f"{_LLAMA_CPP}#supported-backends",),
        ),
    ),
    schemes=(
        Scheme(
            "blocks of 32", ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL", "MXFP4"),
            "every backend of llama.cpp", "",
            (f"{_LLAMA_CPP}/blob/master/tools/quantize/README.md",), _BACKENDS,
        ),
        Scheme(
            "blocks of 256", ("Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K", "IQ4_XS"), "every backend of llama.cpp",
            "rows of a multiple of 256; others get a format of 32",
            (f"{_LLAMA_CPP}/blob/master/tools/quantize/README.md",), _BACKENDS,
        ),
    ),
    notes=("activations are rounded to 8 bits on CPUs, which `fewbits evaluate` does too",),
)  # fmt: skip
