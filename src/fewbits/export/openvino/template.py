"""The graph that optimum-intel makes of transformers' model, traced without the model's matrices.

Matrices of zeros, of whose memory one page is touched, take their place; ours replace them before the graph is written.
So neither the model nor a copy of it is ever held or stored.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from fewbits.checkpoint.checkpoint import Checkpoint, LazyTensor
from fewbits.errors import ArchitectureError, ExportError, MissingExtraError

MODEL = "openvino_model.xml"
TOKENIZERS = ("openvino_tokenizer.xml", "openvino_detokenizer.xml")
TASK = "text-generation-with-past"
_OTHER_VERSION = "Install the version of optimum-intel that fewbits[openvino] asks for"
PutWeights: TypeAlias = Callable[[Any, Mapping[str, LazyTensor]], None]


def require_export(model_type: str) -> None:
    """Refuse a kind of model whose generation optimum-intel can't export.

    Raises:
        ArchitectureError: such a model.
        MissingExtraError: optimum-intel isn't installed.
        ExportError: it can't be imported.
    """
    try:
        with _quiet():
            import optimum.exporters.openvino  # fills the table
            from optimum.exporters.tasks import TasksManager

            del optimum
    except (ImportError, RuntimeError) as error:
        # transformers raises the same for a module that is there and can't be imported, without a name.
        if isinstance(error, ModuleNotFoundError) and error.name:
            raise MissingExtraError(error.name, "openvino", "Writing OpenVINO's graphs") from error
        raise ExportError(
            "optimum-intel can't be imported", found=str(error).strip().splitlines()[0],
            action="A torchvision that was made for another torch does this: pip uninstall torchvision",
        ) from error  # fmt: skip
    kinds = TasksManager.get_supported_model_type_for_task(TASK, "openvino")
    if model_type not in kinds:
        raise ArchitectureError(
            "optimum-intel can't export the generation of this kind of model",
            found=f"model_type {model_type}", allowed=", ".join(sorted(kinds)),
            action="Choose another container, such as --to gguf or --to onnx",
        )  # fmt: skip
    _require_transformers(
        model_type, TasksManager.get_exporter_config_constructor(
            "openvino", model_type=model_type, task=TASK, library_name="transformers"
        ),
    )  # fmt: skip


def _require_transformers(model_type: str, constructor: Any) -> None:
    """Refuse a version of transformers whose models of this kind optimum-intel can't trace.

    `constructor` is that of optimum-intel's description of how to export such models, maybe with arguments bound.
    """
    from importlib.metadata import version

    from packaging.version import Version

    described = getattr(constructor, "func", constructor)
    oldest, newest = (getattr(described, f"{end}_TRANSFORMERS_VERSION", None) for end in ("MIN", "MAX"))
    found = Version(Version(version("transformers")).base_version)
    if (oldest and found < Version(str(oldest))) or (newest and found > Version(str(newest))):
        limits = [f"from {oldest}"] if oldest else []
        limits += [f"up to {newest}"] if newest else []
        raise ArchitectureError(
            f"optimum-intel exports models of the type {model_type} with other versions of transformers",
            found=f"transformers {found}", allowed=" ".join(limits),
            action="Install such a version in an environment of its own, or choose another container",
        )  # fmt: skip


def write_graph(quantized: Checkpoint, folder: Path, put_weights: PutWeights) -> None:
    """Write graph, tokenizer and detokenizer in the layout that openvino-genai loads.

    Args:
        quantized: Hugging Face directory.
        folder: for the files; the graph is called `MODEL`.
        put_weights: called with the graph (openvino.Model), and what belongs into its constants: matrices by the names
            that they have there.

    Raises:
        ExportError: optimum-intel couldn't, with what it said.
    """
    import transformers

    from fewbits.language_model.transformers_model import quiet

    model, weights = _model_without_matrices(quantized)
    with _quiet(), quiet(), _refusals():
        from optimum.exporters.openvino import export_from_model
        from optimum.exporters.openvino.__main__ import maybe_convert_tokenizers

        tokenizer = transformers.AutoTokenizer.from_pretrained(quantized.path, local_files_only=True)
        with _before_saving(lambda graph: put_weights(graph, weights)):
            export_from_model(model, folder, task=TASK, preprocessors=[tokenizer], stateful=True)
        maybe_convert_tokenizers("transformers", folder, preprocessors=[tokenizer], task=TASK)
    if missing := [name for name in (MODEL, *TOKENIZERS) if not (folder / name).exists()]:
        raise ExportError("optimum-intel wrote no graph of a part of the model", found=", ".join(missing))


def _model_without_matrices(quantized: Checkpoint) -> tuple[Any, dict[str, LazyTensor]]:
    """Transformers' model in float32, and the tensors that its matrices of zeros stand for, by all their names."""
    import torch

    from fewbits.language_model.skeleton import build_skeleton, read_parameter

    skeleton = build_skeleton(quantized)
    model = skeleton.model
    weights: dict[str, LazyTensor] = {}
    for name, parameter in list(model.named_parameters()):
        if (tensor := skeleton.tensors.get(name)) is None:
            continue
        if parameter.dim() == 2:
            weights[name] = tensor
            value = torch.from_numpy(np.zeros(parameter.shape, np.float32))  # torch's zeros take memory
            value[0, 0] = len(weights)  # OpenVINO makes one product of two with equal constants
        else:
            value = read_parameter(tensor, torch.float32)
        path, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(path), leaf, torch.nn.Parameter(value, requires_grad=False))
    model.tie_weights()
    owners = {id(model.get_parameter(name)): tensor for name, tensor in weights.items()}
    named = model.named_parameters(remove_duplicate=False)
    return model, {name: owners[id(found)] for name, found in named if id(found) in owners}


@contextmanager
def _before_saving(change: Callable[[Any], None]) -> Iterator[None]:
    """Have a graph changed when optimum-intel is about to save it, in float32 where it isn't compressed.

    Raises:
        ExportError: optimum-intel saves otherwise than the version that is known.
    """
    from optimum.exporters.openvino import convert

    save = getattr(convert, "save_model", None)
    if save is None:
        raise ExportError(
            "optimum-intel saves graphs in a way that fewbits doesn't know", action=_OTHER_VERSION
        )

    def changed(graph: Any, path: Any, *settings: Any) -> None:
        del settings
        change(graph)
        save(graph, path, compress_to_fp16=False)

    convert.save_model = changed
    try:
        yield
    finally:
        convert.save_model = save


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn what the libraries complain about into an error of ours."""
    try:
        yield
    except (ArithmeticError, AttributeError, ImportError, LookupError, OSError) as error:
        raise _failure(error) from error
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise _failure(error) from error


def _failure(error: Exception) -> ExportError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return ExportError(
        "optimum-intel can't export this model",
        found=lines[0],
        action=f"{_OTHER_VERSION}, or choose another container",
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """No advice from libraries while they import and trace."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
