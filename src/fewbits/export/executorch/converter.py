"""Writes a folder for ExecuTorch: a .pte file that its XNNPACK backend runs, and the tokenizer that its runners read.

    OUTPUT/model.pte             the program: `forward` with its key-value cache, and methods that say what it is
    OUTPUT/tokenizer.json, …     as the source has them; config.json is the model's own
    OUTPUT/weights.json          which of the directory's weights each of the program's matrices is

Linear layers are XNNPACK's qd8-f32-qb4w, qd8-f32-qc4w and qd8-f32-qc8w: integers times integers, inputs rounded to
8 bits for each token when they are seen. A tied head is a matrix of its own with the embedding's codes and scales.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fewbits.checkpoint.checkpoint import Checkpoint, LazyTensor
from fewbits.checkpoint.hf_directory import read_json
from fewbits.errors import ArchitectureError, ExportError, MissingExtraError, VerificationError
from fewbits.export.converter import Converter
from fewbits.export.executorch.program_weights import program_weights, weight_names
from fewbits.export.executorch.weights import ExecutorchWeights
from fewbits.export.hugging_face.side_files import model_config, write_side_files
from fewbits.progress import Progress

PROGRAM = "model.pte"
WEIGHTS = "weights.json"
# Kinds of models whose decoder computes what transformers does: tests_runtimes/executorch/test_decoders.py.
_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma3_text", "smollm3")
# Kinds of rotary embeddings whose frequencies depend on how long the text is.
_BY_LENGTH = ("dynamic", "longrope", "su")
_CONTEXT = 2048
_VERSION = "1.5."


class ExecutorchConverter(Converter):
    """ExecuTorch's container.

    Attributes:
        context: most tokens that a program's caches hold.
    """

    name = "executorch"
    intermediate = ExecutorchWeights()
    extra = "executorch"
    packages = ("executorch", "torchao", "transformers")

    def __init__(self, context: int = _CONTEXT) -> None:
        self.context = context

    def check(self, checkpoint: Checkpoint) -> None:
        """See `Converter.check`.

        Raises:
            ArchitectureError: experts, rotary embeddings that no graph can hold, or a kind of model that wasn't tried.
        """
        config = _text_config(checkpoint)
        kind = config.get("model_type")
        if any(".experts." in name or ".block_sparse_moe." in name for name in checkpoint.tensors):
            raise ArchitectureError(
                "XNNPACK has no kernel for mixtures of experts", found=f"model_type {kind}",
                action="Choose --to gguf, which llama.cpp runs on phones too",
            )  # fmt: skip
        if (rope := _rope_type(config)) in _BY_LENGTH:
            raise ArchitectureError(
                "rotary embeddings that change with the length of the text can't be a fixed graph",
                found=f"rope_type {rope}", allowed="other rope_types",
                action="Choose --to gguf, which llama.cpp runs on phones too",
            )  # fmt: skip
        if kind not in _MODEL_TYPES:
            raise ArchitectureError(
                "this kind of model wasn't tried in ExecuTorch", found=f"model_type {kind}",
                allowed=", ".join(_MODEL_TYPES), action="Choose --to gguf, which llama.cpp runs on phones too",
            )  # fmt: skip

    def convert(self, quantized: Checkpoint, output: Path, progress: Progress) -> None:
        """See `Converter.convert`.

        Raises:
            MissingExtraError: executorch isn't installed.
            ExportError: another version of it, or it couldn't write the model.
        """
        self._require_packages()
        self.check(quantized)
        from fewbits.export.executorch.decoder import build_decoder
        from fewbits.export.executorch.program import export_decoder, linear_order, lower

        context = self.context_of(quantized)
        progress.stage("converting", 3, "steps")
        decoder, modules = build_decoder(quantized, context)
        try:
            progress.advance(1, "torch.export")
            program = export_decoder(decoder)
            order = [modules[module] for module in linear_order(program)]
            progress.advance(1, "lowering to XNNPACK")
            lowered = lower(program, metadata_of(quantized, context))
            with (output / PROGRAM).open("wb") as file:
                lowered.write_to_file(file)
            progress.advance(1, PROGRAM)
        except Exception as error:
            said = str(error).strip().splitlines() or [""]
            raise ExportError(
                "ExecuTorch couldn't write this model", found=f"{type(error).__name__}: {said[0]}",
                action="Choose another container, or report the model",
            ) from error  # fmt: skip
        (output / WEIGHTS).write_text(json.dumps(weight_names(quantized, modules, order), indent=1) + "\n")
        write_side_files(quantized, output)

    def weights(self, output: Path) -> Mapping[str, LazyTensor]:
        """See `Converter.weights`."""
        self._require_packages()
        from fewbits.export.executorch.read_program import read_program

        try:
            names = json.loads((output / WEIGHTS).read_bytes())
        except (OSError, ValueError) as error:
            raise VerificationError(f"{output / WEIGHTS} doesn't read back", found=str(error)) from error
        return program_weights(names, read_program(output / PROGRAM))

    def context_of(self, checkpoint: Checkpoint) -> int:
        """Tokens that the program's caches hold: no more than the model's own limit, nor than its sliding window.

        Within the window, sliding attention is what ExecuTorch's operator computes.
        """
        config = _text_config(checkpoint)
        limits = [config.get("max_position_embeddings"), config.get("sliding_window")]
        return min([self.context, *(limit for limit in limits if isinstance(limit, int) and limit > 0)])

    def _require_packages(self) -> None:
        for package in self.packages:
            if importlib.util.find_spec(package) is None:
                raise MissingExtraError(package, self.extra, "writing and reading ExecuTorch's files")
        if not (found := version("executorch")).startswith(_VERSION):
            raise ExportError(
                "the layout of ExecuTorch's files is known for some versions only", found=f"executorch {found}",
                allowed=f"{_VERSION}x", action="Run: pip install 'fewbits[executorch]'",
            )  # fmt: skip


def metadata_of(quantized: Checkpoint, context: int) -> dict[str, Any]:
    """The methods by which ExecuTorch's runners learn what a program is.

    Source: executorch's extension/llm/runner/constants.h.
    """
    config = _text_config(quantized)
    ends = _generation(quantized).get("eos_token_id", config.get("eos_token_id"))
    found = {
        "get_max_seq_len": context - 1,  # tokens in one call
        "get_max_context_len": context,
        "get_vocab_size": config.get("vocab_size"),
        "get_bos_id": config.get("bos_token_id"),
        "get_eos_ids": [ends] if isinstance(ends, int) else ends,
        "get_n_layers": config.get("num_hidden_layers"),
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": True,
        "enable_dynamic_shape": True,
    }
    return {name: value for name, value in found.items() if value is not None}


def _text_config(checkpoint: Checkpoint) -> Mapping[str, Any]:
    config = model_config(checkpoint)
    text = config.get("text_config")
    return text if isinstance(text, Mapping) else config


def _rope_type(config: Mapping[str, Any]) -> str | None:
    """As older and newer files say it."""
    described = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return str(found) if (found := described.get("rope_type", described.get("type"))) else None


def _generation(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """generation_config.json, which says of chat models where answers end; {} without one."""
    path = checkpoint.path / "generation_config.json"
    data = read_json(path) if path.is_file() else {}
    return data if isinstance(data, dict) else {}
