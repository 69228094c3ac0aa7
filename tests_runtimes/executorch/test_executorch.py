"""Programs for ExecuTorch in its own runtime for Python, with XNNPACK on this machine's CPU.

The conversion runs here too: only this environment has the library. It needs fewbits on the path, from this checkout.
"""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

SOURCES = Path(__file__).parents[2] / "src"
sys.path.insert(0, str(SOURCES))

from fewbits.checkpoint.packed import PackedTensor  # noqa: E402
from fewbits.checkpoint.source import open_checkpoint  # noqa: E402
from fewbits.export.executorch.converter import ExecutorchConverter  # noqa: E402
from fewbits.export.executorch.read_program import read_program  # noqa: E402
from fewbits.progress import Silent  # noqa: E402

spec = importlib.util.spec_from_file_location("driver", SOURCES / "fewbits/runtimes/executorch_driver.py")
driver = importlib.util.module_from_spec(spec)
spec.loader.exec_module(driver)


@pytest.fixture
def program(artifact):
    """Folder of the quantized directory, folder of the program, and the expected numbers."""
    directory, expected = artifact
    output = directory.with_name("program")
    if not output.exists():
        unfinished = directory.with_name("unfinished")
        unfinished.mkdir(exist_ok=True)
        ExecutorchConverter().convert(open_checkpoint(directory), unfinished, Silent())
        unfinished.rename(output)
    return directory, output, expected


def test_logits_are_those_of_our_weights_with_inputs_rounded(program, compare):
    directory, output, expected = program
    tensors = open_checkpoint(directory).tensors
    assert sum(isinstance(tensor, PackedTensor) for tensor in tensors.values()) == 22

    found = ExecutorchConverter().weights(output)
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert np.array_equal(found[name].read(), tensor.read()), name
    stored = read_program(output / "model.pte")
    assert (len(stored.linear), len(stored.embeddings), stored.floating) == (22, 1, 0)
    assert (output / "model.pte").stat().st_size < 1.25 * (directory / "model.safetensors").stat().st_size
    assert not [kernel for kernel in stored.kernels if "quantize" in kernel.split("::")[1]]

    tokens = expected["tokens"].tolist()
    logits = driver.logits(str(output), tokens)
    compare(logits, expected, share=0.02, of="runtime")
    # A prompt in one call is the same as token by token, and what follows it too.
    answer = driver.generate(str(output), tokens[:16], 3)
    steps = driver.logits(str(output), tokens[:16] + answer)
    assert answer == steps[15:18].argmax(-1).tolist()


def test_what_runners_ask_for(program):
    from executorch.runtime import Runtime

    directory, output, _ = program
    loaded = Runtime.get().load_program(output / "model.pte")
    config = json.loads((directory / "config.json").read_text())
    asked = {name: loaded.load_method(name).execute(()) for name in loaded.method_names - {"forward"}}

    assert asked["get_max_context_len"] == [config["max_position_embeddings"]]
    assert asked["get_max_seq_len"] == [config["max_position_embeddings"] - 1]
    assert asked["get_vocab_size"] == [config["vocab_size"]]
    assert asked["get_eos_ids"] == [config["eos_token_id"]]
    assert asked["use_kv_cache"] == asked["enable_dynamic_shape"] == asked["use_sdpa_with_kv_cache"] == [True]
    position = loaded.load_method("forward").metadata.input_tensor_meta(1)
    assert position.sizes() == (1,)
    assert (output / "tokenizer.json").exists()


def test_executorchs_own_runner_takes_it(program):
    from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner
    from tokenizers import Tokenizer

    _, output, _ = program
    prompt = "The quick brown fox"
    runner = TextLLMRunner(str(output / "model.pte"), str(output / "tokenizer.json"))

    stats = []
    settings = GenerationConfig(temperature=0.0, max_new_tokens=6, echo=False)
    # Without a callback for text: what a random model says needn't be UTF-8.
    runner.generate(prompt, settings, None, stats.append)
    asked = Tokenizer.from_file(str(output / "tokenizer.json")).encode(prompt).ids
    assert stats[0].num_prompt_tokens == len(asked)
    assert 0 < stats[0].num_generated_tokens <= 6
