"""The graph of a model without its weights, as onnxruntime-genai's model builder makes it.

The builder is run on a model whose parameters lie on PyTorch's meta device, so that it takes memory and time for the
graph alone; `WeightTracing` tells what it puts where. Three methods of the builder's base class are replaced while it
runs: those that load weights, that store one, and that save the graph. Proven with onnxruntime-genai 0.18.
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
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbits.errors import ArchitectureError, ExportError, FewbitsError, MissingExtraError

if TYPE_CHECKING:
    from fewbits.export.onnx.weight_tracing import Piece

EXTRA = "onnx"
PACKAGES = ("torch", "transformers", "onnx", "onnx_ir", "onnxruntime", "onnxruntime_genai")
VERSIONS = "0.18"
GRAPH = "model.onnx"
CONFIG = "config.json"
# As for untied embeddings: what is tied is one parameter, which is stored once.
_OPTIONS = ["shared_embeddings=false"]
_REPLACED = ("load_weights", "make_initializer", "save_model")


@dataclass(frozen=True)
class Weight:
    """An initializer that is made of parameters.

    Attributes:
        pieces: rows of parameters, one after another.
        shape: of them together, [N, K] or [K].
        transposed: whether the graph as the builder made it wants [K, N].
    """

    pieces: tuple[Piece, ...]
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
    """Refuse by name what isn't installed, or is of another version than is known.

    Raises:
        MissingExtraError: a package that writing needs isn't there.
        ExportError: onnxruntime-genai is of a version whose builder isn't known.
    """
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package.replace("_", "-"), EXTRA, "Writing a folder for ONNX Runtime")
    version = metadata.version("onnxruntime-genai")
    if not version.startswith(f"{VERSIONS}."):
        raise ExportError(
            "this version of onnxruntime-genai has another model builder", found=version, allowed=VERSIONS,
            action=f"Run: pip install 'fewbits[{EXTRA}]'",
        )  # fmt: skip


def build_template(config: Mapping[str, Any], files: Mapping[str, bytes]) -> Template:
    """The graph for a model.

    Args:
        config: config.json's data.
        files: the tokenizer's and the generation settings, by name.

    Raises:
        MissingExtraError: the packages for it aren't installed.
        ArchitectureError: the builder doesn't know the model, or stores its weights in a form that can't be followed.
        ExportError: the builder failed, or isn't the one that is known.
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

    def load_weights(self, path: str) -> Any:
        """A model without numbers, whose parameters are traced from now on."""
        import transformers

        from fewbits.export.onnx.weight_tracing import WeightTracing
        from fewbits.language_model.skeleton import parameters_on_meta

        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        with parameters_on_meta():
            model = transformers.AutoModelForCausalLM.from_config(config)
        parameters = dict(model.named_parameters())
        self.shapes = {name: tuple(p.shape) for name, p in parameters.items()}
        self._tracing = WeightTracing(parameters)
        self._tracing.__enter__()
        return model

    def note(self, tensor: object, name: str) -> None:
        """What an initializer is made of; those that aren't made of parameters are the builder's own."""
        import torch

        if not isinstance(tensor, torch.Tensor) or not tensor.is_meta:
            return
        origin = self._tracing.origin(tensor)
        if origin is None:
            self.unknown.append(name)
        else:
            shape = tuple(tensor.shape)
            self.weights[name] = Weight(
                origin.pieces, shape[::-1] if origin.transposed else shape, origin.transposed
            )

    def save_model(self, model: Any) -> None:
        """Keep the graph, with weights as initializers that hold nothing."""
        import onnx_ir as ir

        self.stop()
        model.graph.sort()
        for name in self.weights:
            value = model.graph.initializers[name].const_value
            model.graph.initializers[name].const_value = ir.ExternalTensor(
                "weights", 0, 0, value.dtype, shape=value.shape, name=name
            )
        if not self.unknown:  # whose numbers there aren't
            self.graph = ir.to_proto(model).SerializeToString(deterministic=True)

    def stop(self) -> None:
        """Trace no further."""
        if self._tracing is not None:
            self._tracing.__exit__(None, None, None)
            self._tracing = None


def _run_builder(source: Path, output: Path) -> Template:
    from fewbits.language_model.transformers_model import quiet

    made = _Builder()
    with _replaced_methods(made) as builder, contextlib.redirect_stdout(io.StringIO()), quiet():
        try:
            arguments = (str(source), str(output), "fp32", "cpu", str(output.parent / "cache"))
            options = builder.parse_extra_options(None, *arguments, _OPTIONS)
            builder.create_model(None, *arguments, **options)
        except NotImplementedError as error:
            raise ArchitectureError(
                "onnxruntime-genai's model builder doesn't make this kind of model", found=_kind(source),
                action="Choose another container",
            ) from error  # fmt: skip
        except FewbitsError:
            raise
        except Exception as error:  # the builder raises what its libraries happen to raise
            raise ExportError(
                "onnxruntime-genai's model builder can't make this model",
                found=f"{type(error).__name__}: {error}", action="Choose another container",
            ) from error  # fmt: skip
        finally:
            made.stop()
    if made.unknown:
        raise ArchitectureError(
            "onnxruntime-genai's model builder stores weights in a form that fewbits can't follow, such as the "
            "experts of a mixture", found=", ".join(made.unknown[:4]), action="Choose another container",
        )  # fmt: skip
    files = {
        p.relative_to(output).as_posix(): p.read_bytes() for p in sorted(output.rglob("*")) if p.is_file()
    }
    return Template(made.graph, made.weights, made.shapes, files)


def _kind(source: Path) -> str:
    """What config.json calls the model, and transformers its class."""
    config = json.loads((source / CONFIG).read_bytes())
    return ", ".join([f"model_type {config.get('model_type')}", *(config.get("architectures") or [])])


@contextlib.contextmanager
def _replaced_methods(made: _Builder) -> Iterator[Any]:
    """onnxruntime-genai's builder with three methods of its base class replaced, until the block ends."""
    from onnxruntime_genai.models import builder

    base = builder.Model
    originals = {name: getattr(base, name) for name in _REPLACED}
    store = originals["make_initializer"]

    def make_initializer(model: Any, tensor: Any, /, name: str, **options: Any) -> None:
        made.note(tensor, name)
        store(model, tensor, name=name, **options)

    base.load_weights = lambda _, path: made.load_weights(path)
    base.make_initializer = make_initializer
    base.save_model = lambda model, _: made.save_model(model.model)
    try:
        yield builder
    finally:
        for name, method in originals.items():
            setattr(base, name, method)
