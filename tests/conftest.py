"""A small random model that the tests of the whole program share, as a Hugging Face directory."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import settings

from model_files import SENTENCES, write_tokenizer

if TYPE_CHECKING:
    from serving_model import ServedModel

# The machine may be busy, and a failure must be the same one for everybody.
settings.register_profile("fewbits", deadline=None, derandomize=True)
settings.load_profile("fewbits")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Calibration takes its time: tests that are about it ask for it.
os.environ["FEWBITS_EFFORT"] = "fast"

LAYERS = 3


def write_llama(
    folder: Path, *, hidden: int = 256, ffn: int = 512, vocabulary: int = 384, seed: int = 0
) -> Path:
    """A random llama with grouped attention and tied embeddings, in bfloat16."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": ffn, "num_hidden_layers": LAYERS, "num_attention_heads": hidden // 32,
        "num_key_value_heads": hidden // 64, "head_dim": 32, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "max_position_embeddings": 256, "vocab_size": vocabulary, "tie_word_embeddings": True,
        "hidden_act": "silu", "torch_dtype": "bfloat16", "eos_token_id": 0,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    generator = np.random.default_rng(seed)

    def random(*shape: int) -> torch.Tensor:
        scale = generator.lognormal(0, 0.3, shape[-1]) / np.sqrt(shape[-1])
        return torch.tensor(generator.standard_normal(shape) * scale).to(torch.bfloat16)

    tensors = {"model.embed_tokens.weight": random(vocabulary, hidden) * 4}
    for i in range(LAYERS):
        block = f"model.layers.{i}."
        tensors |= {
            f"{block}input_layernorm.weight": 1 + 0.1 * random(hidden),
            f"{block}post_attention_layernorm.weight": 1 + 0.1 * random(hidden),
            f"{block}self_attn.q_proj.weight": random(hidden, hidden),
            f"{block}self_attn.k_proj.weight": random(hidden // 2, hidden),
            f"{block}self_attn.v_proj.weight": random(hidden // 2, hidden),
            f"{block}self_attn.o_proj.weight": random(hidden, hidden),
            f"{block}mlp.gate_proj.weight": random(ffn, hidden),
            f"{block}mlp.up_proj.weight": random(ffn, hidden),
            f"{block}mlp.down_proj.weight": random(hidden, ffn),
        }
    tensors["model.norm.weight"] = 1 + 0.1 * random(hidden)
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    write_tokenizer(folder, vocabulary)
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model whose rows every format's block divides."""
    return write_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def narrow_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose rows of 192 are no multiple of 256."""
    return write_llama(tmp_path_factory.mktemp("models") / "narrow-llama", hidden=192, ffn=320, seed=1)


@pytest.fixture(scope="session")
def small_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with 64 rows of keys and of values, and 128 columns."""
    return write_llama(tmp_path_factory.mktemp("models") / "small-llama", hidden=128, ffn=256, seed=2)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> "ServedModel":
    """A tiny model with a chat template as a GGUF file, to be served."""
    from serving_model import write_served_model

    return write_served_model(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def sample_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text of a few thousand tokens, in the words that the tokenizer was trained on."""
    path = tmp_path_factory.mktemp("text") / "sample.txt"
    words = [word for sentence in SENTENCES for word in sentence.split(" ")]
    order = np.random.default_rng(0).integers(0, len(words), 2500)
    path.write_text(" ".join(words[i] for i in order), encoding="utf-8")
    return path
