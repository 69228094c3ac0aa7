"""Core ML as a `Converter`: a stateful program of transformers' model in an .mlpackage, for iOS 18 and macOS 15."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fewbits.checkpoint.checkpoint import Checkpoint, LazyTensor
from fewbits.checkpoint.packed import PackedTensor
from fewbits.export.converter import Converter
from fewbits.export.decoder_models import context_of, require_plain_decoder
from fewbits.export.hugging_face.graph_directory import GraphDirectory
from fewbits.export.hugging_face.side_files import write_side_files
from fewbits.formats import get_format
from fewbits.formats.graph_integer import COREML, COREML_PALETTES, COREML_WIDTHS, GROUPS
from fewbits.progress import Progress

_WHOLE_ROW = 0
_INTEGERS = [
    COREML.name(width, group, marked=symmetric)
    for width in COREML_WIDTHS
    for group in (*GROUPS, _WHOLE_ROW)
    for symmetric in (False, True)
]
_PALETTES = [COREML.name(width, _WHOLE_ROW, marked=True) for width in COREML_PALETTES]


class CoremlDirectory(GraphDirectory):
    """What is converted to Core ML."""

    name = "coreml-weights"
    formats = tuple(sorted((*_INTEGERS, *_PALETTES), key=lambda name: -get_format(name).bits))
    planned = tuple(COREML.name(width, group, marked=True) for width in COREML_WIDTHS for group in GROUPS[1:])
    default_format = "COREML4_G32_SYM"


class CoremlConverter(Converter):
    """Writes OUTPUT/model.mlpackage, and the tokenizer and config beside it.

    The program has a state for the key-value cache (`program.py`); it computes in float16, squares and means of
    norms in float32. Nothing of Core ML runs on Linux, so what is proved before the output gets its name is that
    the torch program that coremltools converted gives the logits of transformers' model, and that coremltools reads
    the package back and decompresses our weights from it.
    """

    name = "coreml"
    intermediate = CoremlDirectory()
    extra = "coreml"
    packages = ("coremltools", "torch", "transformers")

    def check(self, checkpoint: Checkpoint) -> None:
        """See `Converter.check`."""
        require_plain_decoder(checkpoint, "Core ML packages")

    def convert(self, quantized: Checkpoint, output: Path, progress: Progress) -> None:
        """See `Converter.convert`.

        Raises:
            ArchitectureError, ExportError: the model isn't one that can be converted.
        """
        from fewbits.export.coreml import package, program
        from fewbits.language_model.transformers_model import model_of

        progress.message("building transformers' model")
        model = model_of(quantized)
        tokens = program.check_tokens(model.config.get_text_config().vocab_size)
        expected = program.logits_of(model, tokens)
        traced_from = program.StatefulProgram(model, context_of(quantized)).eval()
        traced = package.trace(traced_from)
        program.require_equal(traced, expected, tokens)
        traced_from.reset()
        progress.message("coremltools converts it")
        weights = {n: t for n, t in quantized.tensors.items() if isinstance(t, PackedTensor)}
        package.convert(traced, traced_from, weights).save(str(output / package.PACKAGE))
        write_side_files(quantized, output)

    def weights(self, output: Path) -> Mapping[str, LazyTensor]:
        """See `Converter.weights`."""
        from fewbits.export.coreml.package import read_weights

        return read_weights(output)
