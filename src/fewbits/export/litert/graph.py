"""The float32 graph of transformers' model, by litert-torch's export of Hugging Face models."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from fewbits.checkpoint.checkpoint import Checkpoint
from fewbits.errors import ExportError

# Tokens of the signature that reads a prompt; longer ones come in several calls.
PREFILL = 128


def write_graph(model: Any, checkpoint: Checkpoint, context: int, output: Path) -> None:
    """Write a .tflite with the signatures prefill_128 and decode and a key-value cache of `context` positions.

    Raises:
        ExportError: litert-torch can't, with what it said.
    """
    import transformers

    with _schema_without_tensorflow():
        from litert_torch.generative.export_hf.core import export_lib
        from litert_torch.generative.export_hf.core.exportable_module_config import ExportableModuleConfig

    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint.path, local_files_only=True)
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with tempfile.TemporaryDirectory(dir=output.parent) as work, contextlib.redirect_stdout(io.StringIO()):
        settings = ExportableModuleConfig(
            model=str(checkpoint.path),
            output_dir=work,
            work_dir=work,
            prefill_lengths=[min(PREFILL, context)],
            cache_length=context,
            quantization_recipe=None,
            fuse_gate_up=False,
            fuse_qkv=False,
            bundle_litert_lm=False,
        )
        source = export_lib.SourceModelArtifacts(model, config, config.get_text_config(), tokenizer)
        try:
            settings = export_lib.update_export_config(settings, source)
            made = export_lib.export_text_prefill_decode_model(
                source, settings, export_lib.ExportedModelArtifacts()
            )
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ExportError(
                "litert-torch can't export the model",
                found=lines[-1],
                action="Choose another container, such as gguf",
            ) from error
        Path(str(made.prefill_decode_model_path)).replace(output)


@contextlib.contextmanager
def _schema_without_tensorflow() -> Iterator[None]:
    """Let litert-torch be imported where TensorFlow isn't installed.

    litert-torch 0.10.0 doesn't require TensorFlow, and yet one of its models for images, which is imported with all
    others, takes TensorFlow Lite's schema from there. ai-edge-litert brings the same schema.
    """
    if importlib.util.find_spec("tensorflow") is not None:
        yield
        return
    from ai_edge_litert.tools import flatbuffer_utils

    names = ["tensorflow", "tensorflow.lite", "tensorflow.lite.python"]
    packages = {name: ModuleType(name) for name in names}
    packages[names[-1]].schema_py_generated = flatbuffer_utils.schema_fb  # type: ignore[attr-defined]
    sys.modules |= packages
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)
