"""What a real model writes doesn't depend on how many threads compute it, or on what is computed beside it."""

import pytest

from fewbits.checkpoint.gguf import open_gguf
from fewbits.checkpoint.gguf_tokenizer import tokenizer_from_metadata
from published_model import published_model
from steady_greedy_runs import COMPANIONS, continuation

COUNT = 80  # benchmarks/steady_greedy.py takes 1,000


@pytest.fixture(scope="module")
def prompt():
    tokenizer = tokenizer_from_metadata(open_gguf(published_model()).metadata)
    return tokenizer.encode("Once upon a time there was a lighthouse keeper who")


@pytest.fixture(scope="module")
def alone(prompt):
    return continuation(published_model(), prompt, COUNT, threads=1)


@pytest.mark.parametrize(("threads", "companions"), [(2, 0), (3, 0), (1, COMPANIONS), (3, COMPANIONS)])
def test_the_same_logits_to_the_last_bit(prompt, alone, threads, companions):
    found = continuation(published_model(), prompt, COUNT, threads=threads, companions=companions)

    assert len(set(alone.ids)) > COUNT // 4
    assert found == alone
