"""LiteRT models in ai-edge-litert's interpreter, with XNNPACK on this machine's CPU.

The conversion runs here, since only this environment has the library; run.py puts this checkout's fewbits on the path.
"""

from functools import cache

import numpy as np
import torch
from ai_edge_quantizer.utils import tfl_flatbuffer_utils

from fewbits.checkpoint.packed import PackedTensor
from fewbits.checkpoint.source import open_checkpoint
from fewbits.export.litert.converter import MODEL, LitertConverter
from fewbits.language_model.transformers_model import model_of

CONVERTER = LitertConverter()


def rounded_inputs(_module, inputs):
    """Inputs [..., K] as XNNPACK's kernels for 8-bit dynamic activations (qd8) see them: 256 steps for each token."""
    (x,) = inputs
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    step = ((high - low) / 255).clamp(min=1e-30)
    zero = (-128 - low / step).round().clamp(-128, 127)
    return (((x / step).round() + zero).clamp(-128, 127) - zero) * step


@cache
def rounding_model(folder):
    """Transformers' model with our weights, whose linear maps round their inputs so."""
    model = model_of(open_checkpoint(folder))
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(rounded_inputs)
    return model


def simulated(quantized, tokens):
    """Its logits [T, V]."""
    model = rounding_model(quantized.path)
    with torch.no_grad():
        return model(torch.tensor(tokens)[None]).logits[0].numpy()


def test_logits_are_those_of_our_weights_with_inputs_rounded(converted, compare, driver):
    directory, output, expected = converted
    quantized, runtime = open_checkpoint(directory), driver("litert")
    packed = {n: t for n, t in quantized.tensors.items() if isinstance(t, PackedTensor)}

    found = CONVERTER.weights(output)
    assert set(found) == set(packed)
    for name, tensor in packed.items():
        assert np.array_equal(found[name].read(), tensor.read()), name

    # One token through all layers: the same codes of inputs, so the same sums. A code that lies between two steps may
    # turn over, and whatever comes after it.
    tokens = expected["tokens"].tolist()
    alone = [np.abs(runtime.logits(str(output), [t]) - simulated(quantized, [t])).max() for t in tokens[:8]]
    print("\nlogits of single tokens differ by", ", ".join(f"{x:.1e}" for x in alone))
    assert np.median(alone) < 1e-3
    # In a text codes do turn over; so they do if inputs change by a millionth.
    rounded = simulated(quantized, tokens)
    compare(runtime.logits(str(output), tokens), {**expected, "quantized": rounded}, share=0.2)


def test_a_prompt_in_pieces_is_the_same_as_token_by_token(converted, driver):
    _, output, expected = converted
    runtime = driver("litert")
    prompt = (expected["tokens"].tolist() * 3)[:150]

    answer = runtime.generate(str(output), prompt, 3)

    steps = runtime.logits(str(output), prompt + answer)
    assert answer == steps[149:152].argmax(-1).tolist()


def test_no_matrix_is_in_floating_point(converted, driver):
    _, output, _ = converted
    model = tfl_flatbuffer_utils.read_model(str(output / MODEL))

    kinds = {c.builtinCode for c in model.operatorCodes}
    largest = max(
        (len(model.buffers[t.buffer].data) for s in model.subgraphs for t in s.tensors
         if t.type == 0 and model.buffers[t.buffer].data is not None), default=0,
    )  # fmt: skip

    assert not kinds & {6, 114}  # DEQUANTIZE and QUANTIZE: kernels take the integers as they are
    assert largest < 300_000  # float32: masks and the rotary embedding
    assert sorted(driver("litert")._load(str(output))) == ["decode", "prefill_128"]
