"""Writes a Hugging Face directory that transformers loads with bitsandbytes, without quantizing again; and PEFT trains.

config.json's ``quantization_config`` is transformers' BitsAndBytesConfig, which knows one kind for the whole model;
modules that aren't quantized are listed by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fewbits.checkpoint.bitsandbytes import BLOCK, MARKERS, PARTS, ROW_FORMAT, STATE
from fewbits.checkpoint.checkpoint import Checkpoint
from fewbits.checkpoint.packed import WEIGHT
from fewbits.errors import ArchitectureError
from fewbits.export.exporter import OutputTensor
from fewbits.export.hugging_face.directory import HuggingFaceDirectory
from fewbits.export.hugging_face.safetensors_files import Array

_NF4, _INT8 = "NF4", "BNB_INT8"
_COMPUTE = "bfloat16"
# bitsandbytes' number of the layout of 8-bit weights in which rows follow each other, the only one left.
_ROWS = b"\0"


class BitsandbytesExporter(HuggingFaceDirectory):
    """bitsandbytes' container."""

    name = "bitsandbytes"
    formats = (_INT8, _NF4)
    default_format = _NF4
    one_format = True
    fallbacks = False
    markers = MARKERS
    parts = PARTS
    column_multiple = BLOCK

    def tensors(self, checkpoint: Checkpoint) -> list[OutputTensor]:
        """See `HuggingFaceDirectory.tensors`.

        Raises:
            ArchitectureError: also where experts are most of a model, which bitsandbytes doesn't hold.
        """
        found = super().tensors(checkpoint)
        if experts := [t.name for t in found if ".experts." in t.name]:
            raise ArchitectureError(
                "bitsandbytes replaces linear modules, and transformers has the experts of a block in one parameter",
                found=f"{len(experts)} weights of experts, such as {experts[0]}",
                action="Choose --to compressed-tensors, mlx or gguf",
            )
        return found

    def description(self, tensors: Sequence[OutputTensor], formats: Mapping[str, str]) -> dict[str, Any]:
        """The description.

        Raises:
            PlanError: both formats.
        """
        chosen = set(self.formats_used(tensors, formats).values())
        if not chosen:
            return {}
        four = chosen == {_NF4}
        described = {
            "_load_in_4bit": four,
            "_load_in_8bit": not four,
            "bnb_4bit_compute_dtype": _COMPUTE,
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": False,
            "llm_int8_enable_fp32_cpu_offload": False,
            "llm_int8_has_fp16_weight": False,
            "llm_int8_skip_modules": ["lm_head", *self.linear_left(tensors, formats)],
            "llm_int8_threshold": 6.0,
            "load_in_4bit": four,
            "load_in_8bit": not four,
            "quant_method": "bitsandbytes",
        }
        return {"quantization_config": described}

    def constants(self, tensor: OutputTensor, name: str) -> list[Array]:
        """What bitsandbytes wants to know of each weight."""
        prefix = tensor.name.removesuffix(WEIGHT)
        if name == _INT8:
            return [Array(prefix + ROW_FORMAT, "U8", (), tensor.name, ROW_FORMAT, content=_ROWS)]
        state = {"quant_type": "nf4", "blocksize": BLOCK, "dtype": _COMPUTE, "shape": list(tensor.shape)}
        data = json.dumps(state).encode()
        return [Array(prefix + STATE, "U8", (len(data),), tensor.name, STATE, content=data)]
