"""Weights of AutoRound's and GPTQModel's folders as the numbers that a runtime computes.

A linear layer [N, K] with groups of G columns (b bits; a stream of b-bit fields, the lowest bits first):

    qweight  int32 [K*b/32, N]     codes of a column's K weights, down the words of one column
    qzeros   int32 [K/G, N*b/32]   zero points of a group's N rows, along the words of one row
    scales   float16 [K/G, N]
    g_idx    int32 [K]             group of each column; without it: column // G

    weight[n, k] = (code - zero) * scale

That is ``gptq_v2`` of GPTQModel and ``auto_round`` of AutoRound. The older ``gptq`` stores zero - 1 and is refused.
AutoRound writes 4 bits as ``auto_round:auto_awq``, which differs in

    qweight  int32 [K, N/8]        codes of a column's 8 rows in each word, in the order of AWQ_ROWS
    qzeros   int32 [K/G, N/8]      likewise
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file

Integers: TypeAlias = npt.NDArray[np.int32]

AWQ = "auto_round:auto_awq"
# The row, of 8, that each field of a word is of.
AWQ_ROWS = (0, 2, 4, 6, 1, 3, 5, 7)
# quant_method -> the key of its layout, and the layouts that are read here.
LAYOUTS = {"gptq": ("checkpoint_format", ("gptq_v2",)), "auto-round": ("packing_format", ("auto_round", AWQ))}


def quantization_config(folder: Path) -> dict[str, Any]:
    """What the folder's config.json says of its quantization; empty if nothing."""
    return dict(json.loads((folder / "config.json").read_text()).get("quantization_config") or {})


def is_packed(folder: Path) -> bool:
    """Whether the folder is one that this file reads, and transformers wouldn't without more packages."""
    return quantization_config(folder).get("quant_method") in LAYOUTS


def dequantized(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the model by its name, float32.

    Raises:
        SystemExit: the folder has another layout.
    """
    config = quantization_config(folder)
    key, layouts = LAYOUTS[config["quant_method"]]
    layout = config.get(key)
    if layout not in layouts:
        raise SystemExit(f"{folder}: {key} is {layout!r}, only {' and '.join(layouts)} are read")
    stored: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        stored |= load_file(file)
    packed = {name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")}
    parts = {f"{name}.{part}" for name in packed for part in ("qweight", "qzeros", "scales", "g_idx")}
    tensors = {name: tensor.float() for name, tensor in stored.items() if name not in parts}
    for name in packed:
        codes, zeros = _codes_and_zeros(stored, name, config["bits"], awq=layout == AWQ)
        scales = stored[f"{name}.scales"].float().numpy()
        index = stored.get(f"{name}.g_idx")
        groups = np.arange(codes.shape[1]) // config["group_size"] if index is None else index.numpy()
        tensors[f"{name}.weight"] = torch.from_numpy((codes - zeros[groups].T) * scales[groups].T)
    return tensors


def _codes_and_zeros(
    stored: dict[str, torch.Tensor], name: str, bits: int, *, awq: bool
) -> tuple[Integers, Integers]:
    """Codes int32 [N, K] and zero points int32 [K/G, N] of a layer."""
    codes, zeros = (stored[f"{name}.{part}"].numpy() for part in ("qweight", "qzeros"))
    if awq:
        return _rows_in_order(_fields(codes, bits)).T, _rows_in_order(_fields(zeros, bits))
    return _fields(codes.T, bits), _fields(zeros, bits)


def _rows_in_order(fields: Integers) -> Integers:
    """Fields of words [R, N] that are in AWQ's order, in the order of the rows."""
    return fields.reshape(len(fields), -1, 8)[:, :, np.argsort(AWQ_ROWS)].reshape(fields.shape)


def _fields(words: Integers, bits: int) -> Integers:
    """Fields of `bits` bits along the words of each row: int32 [R, n] -> int32 [R, 32 n / bits]."""
    octets = np.ascontiguousarray(words).view(np.uint8)
    stream = np.unpackbits(octets, axis=1, bitorder="little").reshape(len(words), -1, bits)
    places: Integers = stream.astype(np.int32) << np.arange(bits, dtype=np.int32)
    fields: Integers = places.sum(axis=2, dtype=np.int32)
    return fields
