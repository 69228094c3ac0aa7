"""The graph of a model without its weights, as onnxruntime-genai's model builder makes it.

The builder is run on a model whose parameters lie on PyTorch's meta device, so that it takes memory and time for the
graph alone; `WeightTracing` tells what it puts where. Two methods of the builder's base class are replaced while it runs: the one that
loads weights, and the one that saves the graph, which would need them. Proven with onnxruntime-genai 0.18.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fewbits.errors import ArchitectureError, MissingExtraError

EXTRA = "onnx"
PACKAGES = ("onnx", "onnx_ir", "onnxruntime", "onnxruntime_genai", "transformers", "torch")
GRAPH = "model.onnx"
CONFIG = "config.json"
# As for untied embeddings: what is tied is one parameter, which is stored once.
_OPTIONS = {"shared_embeddings": "false"}


@dataclass(frozen=True)
class Weight:
    """An initializer that is made of parameters.

    Attributes:
        pieces: (parameter, constant added to it), one after another along the first axis.
        shape: of the parameters together, [N, K] or [K].
        transposed: whether the graph as the builder made it wants [K, N].
    """

    pieces: tuple[tuple[str, float], ...]
    shape: tuple[int, ...]
    transposed: bool


@dataclass(frozen=True)
class Template:
    """A graph whose weights are named, not stored.

    Attributes:
        graph: a serialized ModelProto; its weights' initializers hold no numbers.
        weights: by initializer.
        shapes: of the parameters, by name, in the order of the model.
        files: that belong beside the graph, by name.
    """

    graph: bytes
    weights: Mapping[str, Weight]
    shapes: Mapping[str, tuple[int, ...]]
    files: Mapping[str, bytes]


def require_packages() -> None:
    """Refuse by name what isn't installed.

    Raises:
        MissingExtraError: a package that writing needs isn't there.
    """
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package.replace("_", "-"), EXTRA, "Writing a folder for ONNX Runtime")


def build_template(config: Mapping[str, Any], files: Mapping[str, bytes]) -> Template:
    """The graph for a model.

    Args:
        config: config.json's data.
        files: the tokenizer's and the generation settings, by name.

    Raises:
        MissingExtraError: the packages for it aren't installed.
        ArchitectureError: the builder doesn't know the model, or stores its weights in a form that can't be followed.
    """
    require_packages()
    return _build(json.dumps(dict(config), sort_keys=True), tuple(sorted(files.items())))


@lru_cache(maxsize=2)
def _build(config: str, files: tuple[tuple[str, bytes], ...]) -> Template:
    with tempfile.TemporaryDirectory(prefix="fewbits-onnx-") as folder:
        source, output = Path(folder) / "source", Path(folder) / "output"
        for path in (source, output):
            path.mkdir()
        for name, data in (*files, (CONFIG, config.encode())):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(data)
        return _run_builder(source, output)


class _Builder:
    """What the replaced methods of the model builder do, and what they saw."""

    def __init__(self) -> None:
        self.graph = b""
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.weights: dict[str, Weight] = {}
        self.unknown: list[str] = []
        self._tracing: Any = None

    def load_weights(self, builder: Any, path: str) -> Any:
        """A model without numbers, whose parameters are traced from now on."""
        import transformers
        from torch import nn

        from fewbits.export.onnx.weight_tracing import WeightTracing
        from fewbits.language_model.skeleton import parameters_on_meta

        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        with parameters_on_meta():
            model = transformers.AutoModelForCausalLM.from_config(config)
        parameters = dict(model.named_parameters())
        self.shapes = {name: tuple(p.shape) for name, p in parameters.items()}
        assert isinstance(model, nn.Module)
        self._tracing = WeightTracing(parameters)
        self._tracing.__enter__()
        return model

    def make_initializer(self, original: Any, builder: Any, tensor: Any, name: str, **options: Any) -> None:
        """Note what an initializer is made of; those that aren't made of parameters are the builder's own."""
        import torch

        if isinstance(tensor, torch.Tensor) and tensor.is_meta:
            origin = self._tracing.origin(tensor)
            if origin is None:
                self.unknown.append(name)
            else:
                shape = tuple(tensor.T.shape if origin.transposed else tensor.shape)
                self.weights[name] = Weight(origin.pieces, shape, origin.transposed)
        original(builder, tensor, name=name, **options)

    def save_model(self, builder: Any, folder: str) -> None:
        """Keep the graph, with weights as initializers that hold nothing."""
        del folder
        import onnx_ir as ir

        self.stop()
        model = builder.model
        model.graph.sort()
        kept = {}
        for name in self.weights:
            kept[name] = model.graph.initializers[name].const_value
            model.graph.initializers[name].const_value = ir.ExternalTensor(
                "weights", 0, 0, kept[name].dtype, shape=kept[name].shape, name=name
            )
        proto = ir.to_proto(model)
        self.graph = proto.SerializeToString(deterministic=True)

    def stop(self) -> None:
        """Trace no further."""
        if self._tracing is not None:
            self._tracing.__exit__(None, None, None)
            self._tracing = None


def _run_builder(source: Path, output: Path) -> Template:
    made = _Builder()
    with _replaced_methods(made) as builder, contextlib.redirect_stdout(io.StringIO()):
        try:
            arguments = (str(source), str(output), "fp32", "cpu", str(output.parent / "cache"))
            pairs = [f"{key}={value}" for key, value in _OPTIONS.items()]
            options = builder.parse_extra_options(None, *arguments, pairs)
            builder.create_model(None, *arguments, **options)
        except NotImplementedError as error:
            raise ArchitectureError(
                "onnxruntime-genai's model builder doesn't make this model", found=str(error),
                action="Choose another container",
            ) from error  # fmt: skip
        finally:
            made.stop()
    if made.unknown:
        raise ArchitectureError(
            "onnxruntime-genai's model builder stores weights in a form that fewbits can't follow",
            found=", ".join(made.unknown[:4]), action="Choose another container",
        )  # fmt: skip
    files = {
        p.relative_to(output).as_posix(): p.read_bytes() for p in sorted(output.rglob("*")) if p.is_file()
    }
    return Template(made.graph, made.weights, made.shapes, files)


@contextlib.contextmanager
def _replaced_methods(made: _Builder) -> Iterator[Any]:
    """onnxruntime-genai's builder with three methods of its base class replaced, until the block ends.

    Raises:
        ArchitectureError: this version of the package has no such methods.
    """
    from onnxruntime_genai.models import builder

    Model = builder.Model  # noqa: N806  a class, imported under one of two names by the package

    names = ("load_weights", "make_initializer", "save_model")
    if not all(hasattr(Model, name) for name in names):
        raise ArchitectureError(
            "this version of onnxruntime-genai has another model builder", allowed="0.18",
            action=f"Run: pip install 'fewbits[{EXTRA}]'",
        )  # fmt: skip
    originals = {name: getattr(Model, name) for name in names}
    original = originals["make_initializer"]
    Model.load_weights = lambda self, path: made.load_weights(self, path)
    Model.save_model = lambda self, folder: made.save_model(self, folder)
    Model.make_initializer = lambda self, tensor, /, name, **o: made.make_initializer(
        original, self, tensor, name, **o
    )
    try:
        yield builder
    finally:
        for name, method in originals.items():
            setattr(Model, name, method)
