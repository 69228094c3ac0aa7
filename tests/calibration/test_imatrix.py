"""Importance matrices in llama.cpp's GGUF form."""

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from fewbits.calibration.imatrix import ImportanceMatrix, read_imatrix, write_imatrix
from fewbits.errors import CalibrationError, OutputError


def sample():
    generator = np.random.default_rng(0)
    sums = generator.random(96, dtype=np.float32) * 100
    experts = generator.random((4, 32), dtype=np.float32)
    experts[2] = 0
    return ImportanceMatrix(
        {
            "blk.0.ffn_down.weight": (sums, np.array([1024], np.float32)),
            "blk.0.ffn_up_exps.weight": (experts, np.array([5, 7, 0, 1], np.float32)),
        },
        ["text.txt"],
        2,
        512,
    )


def test_read_gives_what_was_written(tmp_path):
    write_imatrix(tmp_path / "imatrix.gguf", sample())
    found = read_imatrix(tmp_path / "imatrix.gguf")
    assert (found.datasets, found.chunk_count, found.chunk_size) == (["text.txt"], 2, 512)
    assert found.entries.keys() == sample().entries.keys()
    for name, (sums, counts) in sample().entries.items():
        np.testing.assert_array_equal(found.entries[name][0], sums)
        np.testing.assert_array_equal(found.entries[name][1], counts)
    assert [path.name for path in tmp_path.iterdir()] == ["imatrix.gguf"]


def test_the_file_has_the_structure_that_llama_imatrix_writes(tmp_path):
    write_imatrix(tmp_path / "imatrix.gguf", sample())
    reader = GGUFReader(tmp_path / "imatrix.gguf")
    keys = [key for key in reader.fields if not key.startswith("GGUF.")]
    assert keys == ["general.type", "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"]
    assert reader.fields["general.type"].contents() == "imatrix"
    shapes = {t.name: (t.tensor_type.name, t.shape.tolist()) for t in reader.tensors}
    assert shapes == {
        "blk.0.ffn_down.weight.in_sum2": ("F32", [96, 1]),
        "blk.0.ffn_down.weight.counts": ("F32", [1, 1]),
        "blk.0.ffn_up_exps.weight.in_sum2": ("F32", [32, 4]),
        "blk.0.ffn_up_exps.weight.counts": ("F32", [1, 4]),
    }


def test_importance_is_the_mean_square():
    matrix = sample()
    sums = matrix.entries["blk.0.ffn_down.weight"][0]
    np.testing.assert_allclose(matrix.importance("blk.0.ffn_down.weight"), sums / 1024)
    experts = matrix.importance("blk.0.ffn_up_exps.weight")
    np.testing.assert_array_equal(experts[2], np.ones(32))
    np.testing.assert_allclose(experts[1], matrix.entries["blk.0.ffn_up_exps.weight"][0][1] / 7)
    with pytest.raises(CalibrationError, match="nothing for output"):
        matrix.importance("output.weight")


def write(path, tensors, kind="imatrix"):
    writer = GGUFWriter(path, "llama")
    writer.add_type(kind)
    for name, numbers in tensors.items():
        writer.add_tensor(name, np.array(numbers, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a.in_sum2": [[1, 2]]}, "sums or counts alone of a"),
        ({"a.in_sum2": [[1, 2]], "a.counts": [[1], [2]]}, "1 sums and 2 counts of a"),
        ({"a.in_sum2": [[1, -2]], "a.counts": [[1]]}, "negative or not finite"),
        ({"a.in_sum2": [[1, np.inf]], "a.counts": [[1]]}, "negative or not finite"),
        ({"a.weight": [[1, 2]]}, "no sums"),
    ],
)
def test_damaged_files_are_refused(tmp_path, tensors, message):
    write(tmp_path / "bad.gguf", tensors)
    with pytest.raises(CalibrationError, match=message):
        read_imatrix(tmp_path / "bad.gguf")


def test_models_are_no_importance_matrices(tmp_path):
    write(tmp_path / "model.gguf", {"a.weight": [[1, 2]]}, kind="model")
    with pytest.raises(CalibrationError, match="no importance matrix: found"):
        read_imatrix(tmp_path / "model.gguf")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(OutputError, match="missing"):
        write_imatrix(tmp_path / "missing" / "imatrix.gguf", sample())
