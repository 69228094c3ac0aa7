"""Facts about ONNX Runtime's folders."""

from fewbits.targets.hardware import CPUS, FROM_TURING
from fewbits.targets.target import Runtime, Scheme, Target

_OPERATORS = "https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md"
_GENAI = "https://onnxruntime.ai/docs/genai/howto/build-model.html"
_QUANTIZATION = "https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html"
_QNN = "https://onnxruntime.ai/docs/execution-providers/QNN-ExecutionProvider.html"
_PROCESSORS = (*FROM_TURING, "amd-gpu", "intel-gpu", *CPUS)

TARGET = Target(
    "onnx",
    "folder for ONNX Runtime, in the layout of onnxruntime-genai",
    runtimes=(
        Runtime(
            "onnxruntime-genai", "CPUs; its builds for DirectML, CUDA, WebGPU and NPUs were not tried",
            driver="onnxruntime-genai", row="onnx-runtime", sources=(_GENAI,),
        ),
        Runtime(
            "ONNX Runtime", "the same, without a loop for generation", driver="onnxruntime",
            sources=("https://onnxruntime.ai/docs/execution-providers/",),
        ),
    ),
    schemes=(
        Scheme(
            "weights in MatMulNBits", ("NBITS{4|8}_{G16|G32|G64|G128}[_SYM]",),
            "every processor that ONNX Runtime knows",
            "any mixture; on CPUs activations are rounded to 8 bits", (_OPERATORS,), _PROCESSORS,
        ),
        Scheme(
            "QDQ, 8 bits", ("QDQ8",), "every processor that ONNX Runtime knows", "", (_OPERATORS,), _PROCESSORS,
        ),
        Scheme(
            "QDQ, 8 bits, static activations", ("QDQ8_STATIC",),
            "CPUs, by products of integers; products have the form that NPUs' execution providers ask for, what lies "
            "between them hasn't, and none was tried", "", (_QUANTIZATION, _QNN), CPUS,
        ),
    ),
    notes=("Architectures are those of onnxruntime-genai's model builder; mixtures of experts are refused.",),
)  # fmt: skip
