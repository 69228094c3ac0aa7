"""Writes a Hugging Face directory for GPTQ's kernels: vLLM, SGLang, ExLlama, transformers with GPTQModel.

config.json's ``quantization_config`` is GPTQModel's: bits, group_size and sym of most modules, exceptions by module
under ``dynamic``, where ``-:`` begins the pattern of one that isn't quantized. GPTQModel looks for the pattern of each
module, vLLM for that of the module which it makes of q, k and v, gate and up, or all experts: patterns match both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fewbits.checkpoint.checkpoint import Checkpoint
from fewbits.checkpoint.gptq import MARKERS, PARTS, VERSIONS
from fewbits.errors import PlanError
from fewbits.export.exporter import OutputTensor
from fewbits.export.hugging_face.directory import HuggingFaceDirectory, module_of, usual
from fewbits.export.hugging_face.naming_rules import runtime_pattern
from fewbits.formats import get_format
from fewbits.formats.gptq import GROUPS, WIDTHS, GptqFormat, gptq_name

_FORMATS = [
    gptq_name(width, group, symmetric=symmetric)
    for width in WIDTHS
    for group in (*GROUPS, 0)
    for symmetric in (False, True)
]


class GptqExporter(HuggingFaceDirectory):
    """GPTQ's container."""

    name = "gptq"
    formats = tuple(_FORMATS)
    # What Marlin, the kernel of vLLM and SGLang, and every other takes.
    planned = tuple(gptq_name(width, group, symmetric=True) for width in (8, 4) for group in GROUPS)
    default_format = "GPTQ4_G128_SYM"
    fallbacks = False  # transformers loads one format only
    experts_note = (
        "transformers has the experts of a block in one parameter and doesn't load them packed; vLLM does"
    )
    markers = MARKERS
    parts = PARTS
    row_multiple = 32  # zero points of so many rows fill whole words, whatever the width
    column_multiple = 32

    def notes(self, checkpoint: Checkpoint, formats: Mapping[str, str]) -> tuple[str, ...]:
        """Which runtimes don't read the mixture, and which weights stayed as they are."""
        chosen = {name for name in formats.values() if name in self.formats}
        notes = []
        if len(chosen) > 1:
            notes.append(
                "transformers loads gptq in one format only; GPTQModel and vLLM read mixtures such as this of "
                + ", ".join(sorted(chosen))
            )
        if rare := sorted(name for name in chosen if not _in_marlin(name)):
            notes.append(f"{', '.join(rare)}: GPTQModel reads this, vLLM only 4 and 8 bits that end in _SYM")
        return (*notes, *super().notes(checkpoint, formats))

    def description(self, tensors: Sequence[OutputTensor], formats: Mapping[str, str]) -> dict[str, Any]:
        """GPTQModel's description.

        Raises:
            PlanError: formats with and without zero points, which are stored in two versions of the container.
        """
        chosen = {name: get_format(fmt) for name, fmt in self.formats_used(tensors, formats).items()}
        if not chosen:
            return {}
        described = {name: _described(fmt) for name, fmt in chosen.items() if isinstance(fmt, GptqFormat)}
        if len({d["sym"] for d in described.values()}) > 1:
            raise PlanError(
                "gptq can't hold formats with and without _SYM in one model: they are two versions of it",
                found=", ".join(sorted({fmt.name for fmt in chosen.values()})),
                action="Let all formats of the plan end in _SYM, or none",
            )
        most = usual(described.values())
        dynamic: dict[str, dict[str, Any]] = {}
        for tensor in tensors:
            module = runtime_pattern(module_of(tensor))
            if tensor.name in described:
                if described[tensor.name] != most:
                    dynamic[f"+:^{module}$"] = described[tensor.name]
            elif tensor.role == "linear":
                dynamic[f"-:^{module}$"] = {}
        return {"quantization_config": _config(most, dynamic)}


def _in_marlin(name: str) -> bool:
    """Whether vLLM and SGLang read it. Source: TYPE_MAP in vLLM's quantization/auto_gptq.py."""
    fmt = get_format(name)
    return isinstance(fmt, GptqFormat) and fmt.symmetric and fmt.width in (8, 4)


def _described(fmt: GptqFormat) -> dict[str, Any]:
    return {"bits": fmt.width, "group_size": fmt.block or -1, "sym": fmt.symmetric}


def _config(most: Mapping[str, Any], dynamic: Mapping[str, Any]) -> dict[str, Any]:
    version = VERSIONS[most["sym"]]
    return {
        **most,
        "checkpoint_format": version,
        "format": version,
        "desc_act": False,
        **({"dynamic": dict(dynamic)} if dynamic else {}),
        "lm_head": False,
        "pack_dtype": "int32",
        "quant_method": "gptq",
    }
