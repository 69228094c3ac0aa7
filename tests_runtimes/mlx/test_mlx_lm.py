"""MLX directories in mlx-lm's build for CPUs."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm import load, stream_generate


def test_logits_are_those_of_our_weights(artifact, compare):
    folder, expected = artifact

    model, tokenizer = load(str(folder))

    assert isinstance(model.model.embed_tokens, nn.QuantizedEmbedding)
    assert isinstance(model.model.layers[0].self_attn.q_proj, nn.QuantizedLinear)
    tokens = expected["tokens"].tolist()
    answer = [r.token for r in stream_generate(model, tokenizer, tokens, max_tokens=4)]
    assert answer[0] == int(model(mx.array([tokens]))[0, -1].argmax())
    # Scales and biases too, exactly: what remains is the arithmetic of activations.
    model.set_dtype(mx.float32)
    compare(np.array(model(mx.array([tokens])))[0], expected, share=1e-3, floor=1e-6)
