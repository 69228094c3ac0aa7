"""A tiny random Llama with a tokenizer of its own, a noisy copy of it, and a text."""

import numpy as np
import pytest
import torch

from evaluation_models import make_model, make_tokenizer


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def passage():
    """About 9,000 characters of made-up sentences, the same on every run."""
    words = [
        "the",
        "a",
        "cat",
        "dog",
        "sees",
        "runs",
        "to",
        "of",
        "home",
        "river",
        "12",
        "7",
        "ünder",
        "日本",
    ]
    rng = np.random.default_rng(0)
    return " ".join(rng.choice(words, 2000))


@pytest.fixture(scope="session")
def text_file(passage, tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "passage.txt"
    path.write_text(passage, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def original(passage, tmp_path_factory):
    """The directory of the tiny model."""
    directory = tmp_path_factory.mktemp("original")
    tokenizer = make_tokenizer(passage, 300)
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %} [answer]"
    tokenizer.save_pretrained(directory)
    make_model(len(tokenizer)).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def noisy(original, tmp_path_factory):
    """The tiny model with 5% of noise on every matrix."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = tmp_path_factory.mktemp("noisy")
    model = AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter += 0.05 * parameter.std() * noise
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(original).save_pretrained(directory)
    return directory
