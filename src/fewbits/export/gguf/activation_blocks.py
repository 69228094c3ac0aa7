"""How llama.cpp rounds the inputs of quantized maps: to 8 bits, in blocks that share a scale.

The type is what the weight type's dot product takes (`vec_dot_type` in ggml-cpu.c's table `type_traits_cpu`): Q8_0 or
Q8_1, blocks of 32, or Q8_K, blocks of 256. Weights in floating point take their inputs in floating point.
"""

from __future__ import annotations

from collections.abc import Mapping

ACTIVATION_BLOCK: Mapping[str, int] = {
    **dict.fromkeys(("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4", "NVFP4", "Q1_0", "Q2_0"), 32),
    **dict.fromkeys(("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "TQ1_0", "TQ2_0"), 256),
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"), 256),
}
