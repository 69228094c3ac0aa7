"""Folds: channels rescaled on their way into a container, in a model that computes the same."""

import numpy as np
import pytest
import torch
from tests.tiny_models import TINY_MODELS, sample_tokens, save

from fewbits.calibration.blocks import BlockwiseModel
from fewbits.calibration.find_folds import block_folds, head_fold
from fewbits.calibration.store import StatisticsStore
from fewbits.checkpoint.source import open_checkpoint
from fewbits.export.registry import get_exporter
from fewbits.language_model.skeleton import build_skeleton
from fewbits.pipeline.folds import (
    folded,
    load_folds,
    placed_folds,
    save_folds,
    scales_of_its_own,
    tensor_folds,
)

# How many kinds of folds a block has: norms before attention and before the rest, values, up.
KINDS = {"olmo2": 2, "olmo2-tied": 2, "olmo3": 2}


def logits(model, parameters):
    """Of transformers' model with these parameters, by name."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in parameters:
                parameter.copy_(torch.from_numpy(parameters[name].read()))
        return model(torch.tensor([sample_tokens()])).logits[0].double()


def found_folds(checkpoint, folder):
    """A store with the folds of all blocks and the head, and how many blocks have some."""
    store = StatisticsStore(folder)
    store.begin({})
    model = BlockwiseModel(build_skeleton(checkpoint))
    for index, name in enumerate(model.names):
        with model.block(index):
            store.save_folds(name, [fold.as_data() for fold in block_folds(model, index)])
    width = model.skeleton.tensors[model.skeleton.embedding].shape[-1]
    if fold := head_fold(model, width):
        store.save_folds("head", [fold.as_data()])
    return store, model


@pytest.mark.parametrize("target", ["gguf", "compressed-tensors"])
@pytest.mark.parametrize("kind", TINY_MODELS)
def test_any_scales_leave_the_model_as_it_was(kind, target, tmp_path):
    reference = save(TINY_MODELS[kind], tmp_path / "model")
    with torch.no_grad():
        expected = reference(torch.tensor([sample_tokens()])).logits[0].double()
    checkpoint = open_checkpoint(tmp_path / "model")
    exporter = get_exporter(target)
    tensors, metadata = exporter.tensors(checkpoint), exporter.metadata(checkpoint)
    store, model = found_folds(checkpoint, tmp_path / "store")
    placed = placed_folds(exporter, tensors, metadata, store)
    rng = np.random.default_rng(0)
    by_name = {t.name: t for t in tensors}
    scales = [np.exp(rng.normal(0, 0.5, p.channels.max() + 1)).astype(np.float32) for p in placed]
    save_folds(tmp_path / "folds.npz", tensor_folds(zip(placed, scales, strict=True), by_name))
    changed = folded(tensors, load_folds(tmp_path / "folds.npz"))

    assert len(placed) >= KINDS.get(kind, 4) * len(model.blocks)
    moved = [
        t.name
        for t, f in zip(tensors, changed, strict=True)
        if not np.array_equal(t.source.read(), f.source.read())
    ]
    assert len(moved) >= 4 * len(model.blocks)
    names = {name for name, _ in reference.named_parameters()}
    parameters = exporter.parameters({t.name: t.source for t in changed}, metadata, names)
    found = logits(reference, parameters)
    # Norms are kept in BF16 where the model is; the factors undo just what that leaves.
    assert float((found - expected).abs().max()) < 2e-4 * float(expected.abs().max())


@pytest.mark.parametrize(
    ("container", "name", "alone"),
    [
        ("compressed-tensors", "NVFP4_A4", True),
        ("compressed-tensors", "MXFP4_PACKED_A4", True),
        ("compressed-tensors", "INT8_CHANNEL_SYM", True),
        ("compressed-tensors", "INT4_G64_SYM_A8", True),
        ("compressed-tensors", "NVFP4", False),
        ("compressed-tensors", "INT4_G64_SYM", False),
        ("gguf", "Q4_0", False),
        ("gguf", "NVFP4_A4", False),
    ],
)
def test_scales_are_for_a_format_alone_where_rows_or_coarse_inputs_make_it_unlike_others(
    container, name, alone
):
    assert scales_of_its_own(name, get_exporter(container)) == alone
