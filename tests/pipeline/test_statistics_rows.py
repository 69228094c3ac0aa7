import numpy as np

from fewbits.architectures import to_hugging_face
from fewbits.checkpoint.source import open_checkpoint
from fewbits.export.registry import get_exporter
from fewbits.pipeline.statistics_rows import statistics_rows


def test_every_row_of_a_tensor_is_the_row_of_the_live_model_that_it_says(tiny_llama, tmp_path):
    import fewbits

    fewbits.quantize(tiny_llama, tmp_path / "f32.gguf", format="F32")
    checkpoint = open_checkpoint(tmp_path / "f32.gguf")
    tensors = get_exporter("gguf").tensors(checkpoint)
    _, parameters = to_hugging_face(checkpoint)

    rows = statistics_rows(checkpoint, tensors, checkpoint.metadata, set(parameters))

    assert {"blk.0.attn_q.weight", "blk.2.ffn_down.weight", "token_embd.weight"} <= set(rows)
    for tensor in tensors:
        for segment in rows.get(tensor.name, []):
            live = parameters[segment.parameter].read()[segment.rows]
            stored = tensor.source.rows(segment.start, segment.start + len(segment.rows))
            assert np.array_equal(live, stored), tensor.name
