"""The compressed-tensors package, the owner of the integer, FP8 and NVFP4 layouts, on NumPy arrays."""

import numpy as np
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
from compressed_tensors.quantization.utils import calculate_qparams

_DTYPES = {"BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}


def to_torch(fmt, parts):
    """A format's parts as the tensors of a safetensors file."""
    tensors = {}
    for name, part in parts.items():
        view = part.view(np.int16) if part.dtype == np.uint16 else part
        tensor = torch.from_numpy(view.copy())
        tensors[name] = tensor.view(_DTYPES[fmt.part_dtypes[name]]) if name in fmt.part_dtypes else tensor
    return tensors


def decompress(container, args, tensors):
    """What compressed-tensors makes of a module's tensors, float32 [N, K]."""
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    compressor = BaseCompressor.get_value_from_registry(container)
    return compressor.decompress(tensors, scheme)["weight"].float().numpy()


def plain(weight, args, scale_dtype=torch.float32, groups=1, global_scale=None):
    """Min-max parameters, codes and decoded weight [N, K] as compressed-tensors computes them.

    Returns:
        scale and zero point as tensors, the codes it rounds to (as numbers of its grid) and what they decode
        to, float32 [N, K].
    """
    w = torch.from_numpy(weight)
    grouped = w.reshape(w.shape[0], groups, -1) if groups else w.reshape(1, 1, -1)
    scale, zero = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args, global_scale=global_scale)
    scale = scale.to(scale_dtype)
    if not groups:
        scale, zero = scale.reshape(1), zero.reshape(1)
    point = None if args.symmetric else zero
    # As its compressors cast them; FP4 codes stay numbers.
    dtype = args.pytorch_dtype() if args.num_bits == 8 or args.type == "int" else None
    codes = quantize(w, scale, point, args, dtype=dtype, global_scale=global_scale)
    decoded = dequantize(codes, scale, point, args, global_scale=global_scale)
    return scale, zero, codes.float().numpy(), decoded.float().numpy()


def arguments(**kwargs):
    """Quantization arguments of a weight."""
    return QuantizationArgs(**kwargs)
