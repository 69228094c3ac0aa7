"""Programs for ExecuTorch in its own runtime for Python, with XNNPACK on this machine's CPU.

The conversion runs here too: only this environment has the library. run.py puts this checkout's fewbits on the path.
"""

import json

import numpy as np

from fewbits.checkpoint.packed import PackedTensor
from fewbits.checkpoint.source import open_checkpoint
from fewbits.evaluation.language_model import load_language_model
from fewbits.export.executorch.converter import ExecutorchConverter
from fewbits.export.executorch.read_program import read_program

CONVERTER = ExecutorchConverter()
ALONE = 16


def test_logits_are_those_of_our_weights_with_inputs_rounded(converted, compare, driver, kl):
    directory, output, expected = converted
    runtime = driver("executorch")
    tensors = open_checkpoint(directory).tensors
    assert sum(isinstance(tensor, PackedTensor) for tensor in tensors.values()) == 22

    found = CONVERTER.weights(output)
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert np.array_equal(found[name].read(), tensor.read()), name
    stored = read_program(output / "model.pte")
    assert (len(stored.linear), len(stored.embeddings), stored.floating) == (22, 1, 0)
    assert (output / "model.pte").stat().st_size < 1.25 * (directory / "model.safetensors").stat().st_size
    assert not [kernel for kernel in stored.kernels if "quantize" in kernel.split("::")[1]]

    # One token through all layers: the same codes of inputs, so the same sums, unless one lies between two codes.
    tokens = expected["tokens"].tolist()
    ours = load_language_model(open_checkpoint(directory), "runtime")
    apart = []
    for token in tokens[:ALONE]:
        rounded, exact = (next(iter(m.logits([token], 0)))[0] for m in (ours, ours.with_float_activations()))
        apart.append(
            np.abs(runtime.logits(str(output), [token])[0] - rounded).max() / np.abs(exact - rounded).max()
        )
    print("\nsingle tokens differ by", ", ".join(f"{x:.1e}" for x in apart), "of what rounding costs")
    assert np.median(apart) < 1e-3
    # In a text some input does, and all later tokens see it: two roundings that share no code from there on.
    logits = runtime.logits(str(output), tokens)
    compare(logits, expected, share=0, floor=2 * kl(expected["quantized"], expected["runtime"]), of="runtime")
    # A prompt in one call is the same as token by token, and what follows it too.
    answer = runtime.generate(str(output), tokens[:16], 3)
    steps = runtime.logits(str(output), tokens[:16] + answer)
    assert answer == steps[15:18].argmax(-1).tolist()


def test_what_runners_ask_for(converted):
    from executorch.runtime import Runtime

    directory, output, _ = converted
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


def test_executorchs_own_runner_takes_it(converted):
    from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner
    from tokenizers import Tokenizer

    _, output, _ = converted
    prompt = "The quick brown fox"
    runner = TextLLMRunner(str(output / "model.pte"), str(output / "tokenizer.json"))

    stats = []
    settings = GenerationConfig(temperature=0.0, max_new_tokens=6, echo=False)
    # Without a callback for text: what a random model says needn't be UTF-8.
    runner.generate(prompt, settings, None, stats.append)
    asked = Tokenizer.from_file(str(output / "tokenizer.json")).encode(prompt).ids
    assert stats[0].num_prompt_tokens == len(asked)
    assert 0 < stats[0].num_generated_tokens <= 6
