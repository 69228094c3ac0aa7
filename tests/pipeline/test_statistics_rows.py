import numpy as np
import pytest

from fewbits.architectures import to_hugging_face
from fewbits.checkpoint.source import open_checkpoint
from fewbits.export.registry import get_exporter
from fewbits.pipeline.statistics_rows import statistics_rows
from tiny_models import TINY_MODELS, save


def test_every_row_of_a_tensor_is_the_row_of_the_live_model_that_it_says(tiny_llama, tmp_path):
    import fewbits

    fewbits.quantize(tiny_llama, tmp_path / "f32.gguf", format="F32")
    checkpoint = open_checkpoint(tmp_path / "f32.gguf")
    exporter = get_exporter("gguf")
    tensors = exporter.tensors(checkpoint)
    _, parameters = to_hugging_face(checkpoint)

    rows = statistics_rows(exporter, tensors, checkpoint.metadata, set(parameters))

    assert {"blk.0.attn_q.weight", "blk.2.ffn_down.weight", "token_embd.weight"} <= set(rows)
    for tensor in tensors:
        for segment in rows.get(tensor.name, []):
            live = parameters[segment.parameter].read()[segment.rows]
            stored = tensor.source.rows(segment.start, segment.start + len(segment.rows))
            assert np.array_equal(live, stored), tensor.name


@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral"])
def test_a_directory_s_experts_are_rows_of_the_live_model_s_stacks(name, tmp_path):
    model = save(TINY_MODELS[name], tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    exporter = get_exporter("compressed-tensors")
    tensors = exporter.tensors(checkpoint)
    live = {n: p.detach().numpy() for n, p in model.named_parameters()}
    known = {n for n, p in live.items() if p.ndim == 2}
    known |= {f"{n}#{e}" for n, p in live.items() if p.ndim == 3 for e in range(len(p))}

    rows = statistics_rows(exporter, tensors, exporter.metadata(checkpoint), known)

    assert {t.name for t in tensors if t.quantizable} <= set(rows)
    for tensor in tensors:
        for segment in rows.get(tensor.name, []):
            parameter, _, expert = segment.parameter.partition("#")
            whole = live[parameter][int(expert)] if expert else live[parameter]
            stored = tensor.source.rows(segment.start, segment.start + len(segment.rows))
            assert np.array_equal(whole[segment.rows], stored), tensor.name
