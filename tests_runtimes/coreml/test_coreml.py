"""Core ML packages in coremltools on Linux, which reads and decompresses them but has no engine to run them.

What runs is the torch program that coremltools converted. The conversion runs here, since only this environment has the
library; run.py puts this checkout's fewbits on the path.
"""

import numpy as np
from coremltools.models import MLModel
from coremltools.models.utils import load_spec

from fewbits.checkpoint.packed import PackedTensor
from fewbits.checkpoint.source import open_checkpoint
from fewbits.export.coreml import package
from fewbits.export.coreml.converter import CoremlConverter
from fewbits.export.coreml.program import StatefulProgram, run_in_steps
from fewbits.export.decoder_models import context_of
from fewbits.language_model.transformers_model import model_of

CONVERTER = CoremlConverter()


def test_coremltools_decompresses_our_weights_and_the_program_computes_the_model(converted, compare):
    directory, output, expected = converted
    quantized = open_checkpoint(directory)
    packed = {n: t for n, t in quantized.tensors.items() if isinstance(t, PackedTensor)}

    found = CONVERTER.weights(output)

    assert set(found) == set(packed)
    for name, tensor in packed.items():
        assert np.array_equal(found[name].read(), tensor.read()), name
        assert np.array_equal(found[name].rows(3, 9), tensor.rows(3, 9)), name

    program = package.trace(StatefulProgram(model_of(quantized), context_of(quantized)).eval())
    compare(run_in_steps(program, expected["tokens"].tolist(), 20).numpy(), expected, share=1e-3)


def test_the_package_says_what_it_is(converted):
    directory, output, _ = converted
    quantized = open_checkpoint(directory)
    where = output / package.PACKAGE

    spec = load_spec(str(where))
    function = spec.mlProgram.functions["main"]
    kinds = [op.type for op in function.block_specializations[function.opset].operations]

    assert MLModel(str(where), skip_model_load=True).get_spec() == spec
    assert function.opset == "CoreML8"
    assert [i.name for i in spec.description.input] == ["inputIds", "causalMask"]
    assert [s.name for s in spec.description.state] == ["keyCache", "valueCache"]
    assert [o.name for o in spec.description.output] == ["logits"]
    weights = [t for t in quantized.tensors.values() if isinstance(t, PackedTensor)]
    assert kinds.count("constexpr_blockwise_shift_scale") == len(weights)
    # Nothing is held twice: beside the weights there are norms, and the tables of the rotary embedding.
    held = sum(f.stat().st_size for f in where.rglob("*") if f.is_file())
    tables = 2 * 2 * context_of(quantized) * quantized.config["head_dim"]
    assert held < 1.02 * sum(t.nbytes for t in weights) + tables + 400_000


def test_another_byte_is_another_weight(converted, tmp_path):
    import shutil

    directory, output, _ = converted
    quantized = open_checkpoint(directory)
    shutil.copytree(output, tmp_path / "changed")
    blob = next((tmp_path / "changed").rglob("weight.bin"))
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 0x11
    blob.write_bytes(bytes(data))

    found = CONVERTER.weights(tmp_path / "changed")

    assert any(not np.array_equal(t.read(), quantized.tensors[n].read()) for n, t in found.items())
