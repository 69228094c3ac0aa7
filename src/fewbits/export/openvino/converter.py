"""Writes a folder that openvino-genai generates from: graph, tokenizer and detokenizer.

    OUTPUT/openvino_model.xml, .bin           the graph, stateful, with our constants
    OUTPUT/openvino_tokenizer.xml, .bin, …    by openvino-tokenizers
    OUTPUT/config.json, tokenizer.json, …     as the source has them

The graph is optimum-intel's. Its key-value cache stays in float16 unless the user asks the runtime for less.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from fewbits.checkpoint.checkpoint import Checkpoint, LazyTensor
from fewbits.errors import ArchitectureError
from fewbits.export.converter import Converter
from fewbits.export.hugging_face.side_files import model_config, write_side_files
from fewbits.export.openvino.directory import OpenvinoDirectory
from fewbits.progress import Progress

# optimum-intel's folder, in the output while it works.
_WORK = "optimum"
# In Hugging Face's names and in GGUF's.
_EXPERTS = re.compile(r"\.experts\.|_exps\.")


class OpenvinoConverter(Converter):
    """OpenVINO's container."""

    name = "openvino"
    intermediate = OpenvinoDirectory()
    extra = "openvino"
    packages = ("openvino", "optimum.intel", "openvino_tokenizers", "torch", "transformers")

    def check(self, checkpoint: Checkpoint) -> None:
        """See `Converter.check`.

        Raises:
            ArchitectureError: experts, or a kind of model that optimum-intel can't export.
            MissingExtraError: optimum-intel isn't installed.
            ExportError: it can't be imported.
        """
        if experts := [name for name in checkpoint.tensors if _EXPERTS.search(name)]:
            raise ArchitectureError(
                "fewbits puts matrices into OpenVINO's graphs, which have experts as stacks",
                found=f"{len(experts)} weights of experts, such as {experts[0]}",
                action="Use --to gguf or --to compressed-tensors",
            )
        from fewbits.export.openvino.template import require_export

        config = model_config(checkpoint)
        text = config.get("text_config")
        kind = text.get("model_type") if isinstance(text, Mapping) else None
        require_export(str(kind or config.get("model_type")))

    def convert(self, quantized: Checkpoint, output: Path, progress: Progress) -> None:
        """See `Converter.convert`."""
        from fewbits.export.openvino.graph import put_weights
        from fewbits.export.openvino.template import MODEL, TOKENIZERS, write_graph

        progress.stage("tracing the model with optimum-intel", 1, "graphs")
        work = output / _WORK
        write_graph(quantized, work, put_weights)
        for name in (MODEL, *TOKENIZERS):
            for file in (work / name, (work / name).with_suffix(".bin")):
                shutil.move(file, output / file.name)
        shutil.rmtree(work)
        write_side_files(quantized, output)
        progress.advance(1, MODEL)

    def weights(self, output: Path) -> Mapping[str, LazyTensor]:
        """See `Converter.weights`."""
        from fewbits.export.openvino.graph import read_weights
        from fewbits.export.openvino.template import MODEL

        return read_weights(output / MODEL)
