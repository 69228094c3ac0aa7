"""LiteRT as a `Converter`: litert-torch's export of transformers' model, for Android, iOS, desktops and the web."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from fewbits.checkpoint.checkpoint import Checkpoint, LazyTensor
from fewbits.checkpoint.packed import PackedTensor
from fewbits.errors import ArchitectureError
from fewbits.export.converter import Converter
from fewbits.export.decoder_models import context_of, require_plain_decoder
from fewbits.export.hugging_face.graph_directory import GraphDirectory
from fewbits.export.hugging_face.side_files import write_side_files
from fewbits.formats.graph_integer import LITERT, LITERT_GROUPS, LITERT_NAMES
from fewbits.progress import Progress

MODEL = "model.tflite"
WEIGHTS = "weights.json"
# Rotary embeddings that depend on the text's length, which litert-torch refuses.
_OPEN_ROPES = ("dynamic", "longrope")


class LitertDirectory(GraphDirectory):
    """What is converted to LiteRT."""

    name = "litert-weights"
    formats = LITERT_NAMES
    default_format = LITERT.name(4, LITERT_GROUPS[0], marked=False)


class LitertConverter(Converter):
    """Writes OUTPUT/model.tflite with the signatures prefill_N and decode, and the tokenizer and config beside it.

    litert-torch makes the graph from transformers' model, in float32; ai-edge-quantizer rewrites its weights with our
    codes and scales (`codes.py`), for kernels that round activations to 8 bits per token as they run.
    """

    name = "litert"
    intermediate = LitertDirectory()
    extra = "litert"
    packages = ("litert_torch", "ai_edge_litert", "ai_edge_quantizer", "torch", "transformers")

    def check(self, checkpoint: Checkpoint) -> None:
        """See `Converter.check`."""
        require_plain_decoder(checkpoint, "LiteRT models")
        rope = checkpoint.config.get("rope_parameters") or checkpoint.config.get("rope_scaling") or {}
        if rope.get("rope_type") in _OPEN_ROPES:
            raise ArchitectureError(
                "litert-torch has no positions that depend on the text's length",
                found=f"rope_type {rope['rope_type']}", action="Choose another container, such as gguf",
            )  # fmt: skip

    def convert(self, quantized: Checkpoint, output: Path, progress: Progress) -> None:
        """See `Converter.convert`.

        Raises:
            ExportError: litert-torch or ai-edge-quantizer can't.
        """
        from fewbits.export.litert.codes import put_codes
        from fewbits.export.litert.graph import write_graph
        from fewbits.language_model.transformers_model import model_of

        progress.message("building transformers' model")
        model = model_of(quantized)
        progress.message("litert-torch writes its graph")
        graph = output / "float.tflite"
        write_graph(model, quantized, context_of(quantized), graph)
        del model
        progress.message("ai-edge-quantizer puts codes in")
        weights = {n: t for n, t in quantized.tensors.items() if isinstance(t, PackedTensor)}
        placed = put_codes(graph, output / MODEL, weights)
        graph.unlink()
        (output / WEIGHTS).write_text(json.dumps(placed, indent=2) + "\n")
        write_side_files(quantized, output)

    def weights(self, output: Path) -> Mapping[str, LazyTensor]:
        """See `Converter.weights`."""
        from fewbits.export.litert.codes import read_weights

        return read_weights(output / MODEL, json.loads((output / WEIGHTS).read_bytes()))
