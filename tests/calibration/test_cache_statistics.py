"""Keys and values seen block by block against those that a whole model puts into its cache."""

import numpy as np
import pytest
import torch
from tests.tiny_models import TINY_MODELS, sample_tokens, save
from transformers import DynamicCache

from fewbits.calibration.blocks import BlockwiseModel
from fewbits.calibration.cache_statistics import CacheObservation, cache_statistics
from fewbits.calibration.find_folds import block_folds
from fewbits.calibration.store import StatisticsStore
from fewbits.checkpoint.source import open_checkpoint
from fewbits.language_model.skeleton import build_skeleton

KINDS = ["llama", "gemma3_text", "phi3", "mixtral"]


class Kept(DynamicCache):
    """Keeps everything, windows or not."""

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        self.states = getattr(self, "states", {})
        self.states[layer_idx] = key_states[0], value_states[0]
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


@pytest.mark.parametrize("kind", KINDS)
def test_what_enters_the_cache_is_seen_and_what_rescales_it_is_found(kind, tmp_path):
    reference = save(TINY_MODELS[kind], tmp_path / "model")
    ids = torch.tensor([sample_tokens()])
    whole = Kept(config=reference.config)
    with torch.no_grad():
        reference(ids, past_key_values=whole, use_cache=True)
    store = StatisticsStore(tmp_path / "store")
    store.begin({})
    model = BlockwiseModel(build_skeleton(open_checkpoint(tmp_path / "model")))
    with model.embedding():
        hidden = model.embed(ids)

    for index, name in enumerate(model.names):
        observation = CacheObservation()
        with model.block(index) as block, torch.no_grad():
            folds = block_folds(model, index)
            with observation.watching(block, name):
                hidden = model.run(index, hidden, observation.empty(model.config))
            ((module, found),) = cache_statistics(model, index, observation, folds).items()
        assert module == f"model.layers.{index}.self_attn"
        keys, values = whole.states[index]
        np.testing.assert_allclose(found.key_peaks, keys.abs().amax(1), rtol=1e-4)
        np.testing.assert_allclose(found.value_peaks, values.abs().amax(1), rtol=1e-4)
        np.testing.assert_allclose(found.values[0], values[:, 0], rtol=2e-3, atol=1e-4)
        # Values are rescaled by their projection's rows, the last of a fused one; keys by nothing.
        assert found.key_source is None
        rows, width = found.value_source.rows, values.shape[0] * values.shape[2]
        projection = reference.get_parameter(found.value_source.parameter)
        assert found.value_source.parameter.startswith(module)
        assert rows.tolist() == list(range(len(projection) - width, len(projection)))
        store.save_cache(module, found)
        again = store.load_cache(module)
        assert np.array_equal(again.values, found.values)
        assert np.array_equal(again.value_source.rows, rows)
    assert len(store.caches()) == len(model.names)
    assert store.names() == []
