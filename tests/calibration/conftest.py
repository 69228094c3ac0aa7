"""Tiny models with tokenizers, and their exact predictions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny_models
from fewbits.calibration.text import CalibrationTokens

LENGTH = 32


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWBITS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def make_model(tmp_path_factory):
    """A function that writes a tiny model of a name in tiny_models once; its directory."""
    made = {}

    def make(name: str, **changes: object) -> Path:
        key = json.dumps([name, changes], sort_keys=True)
        if key not in made:
            tiny = tiny_models.TINY_MODELS[name]
            tiny = tiny_models.TinyModel(tiny.model_type, {**tiny.config, **changes}, saved=tiny.saved)
            made[key] = tmp_path_factory.mktemp("model") / name
            tiny_models.save(tiny, made[key])
        return made[key]

    return make


@pytest.fixture(scope="session")
def tokens():
    """64 blocks of 32 tokens with the skewed frequencies of text."""
    generator = np.random.default_rng(3)
    frequencies = 1 / np.arange(1, tiny_models.VOCABULARY + 1)
    blocks = generator.choice(tiny_models.VOCABULARY, (64, LENGTH), p=frequencies / frequencies.sum())
    return CalibrationTokens(blocks.astype(np.int64), "random", "0" * 64, 0)
