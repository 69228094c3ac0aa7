"""The GGUF container: metadata and layout against the `gguf` package, and GGUF files rewritten unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from fewbits.checkpoint.checkpoint import Checkpoint, Floats, LazyTensor, StoredTensor
from fewbits.checkpoint.gguf_constants import GGML_TYPES, ValueType
from fewbits.checkpoint.source import open_checkpoint
from fewbits.errors import ArchitectureError, FormatError, VerificationError
from fewbits.export.exporter import ITSELF, WHOLE, OutputTensor
from fewbits.export.gguf.container import Typed
from fewbits.export.gguf.general_metadata import front_matter, model_name
from fewbits.export.gguf.naming_rules import allows_quantization, block_of, role_of
from fewbits.export.registry import exporter_names, get_exporter
from model_files import GgufFile, gguf_tensor, gguf_value, small_gguf

EXPORTER = get_exporter("gguf")


class Zeros(LazyTensor):
    """A tensor that is only laid out, never read."""

    dtype = "F32"

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name, self.shape = name, shape

    def rows(self, start: int, stop: int) -> Floats:
        return np.zeros((stop - start, self.matrix[1]), np.float32)


def output(name: str, shape: tuple[int, ...]) -> OutputTensor:
    return OutputTensor(name, Zeros(name, shape), "other", False)


def write_header(path: Path, metadata: dict[str, Any], tensors: list[OutputTensor] | None = None) -> Path:
    layout = EXPORTER.layout(tensors or [], {}, metadata)
    with path.open("wb") as file:
        file.write(layout.files[ITSELF].header)
        file.truncate(layout.size)
    return path


def copy_gguf(checkpoint: Checkpoint, path: Path) -> None:
    """Every tensor in the type that it has, byte for byte."""
    tensors = EXPORTER.tensors(checkpoint)
    formats = {t.name: t.source.dtype for t in tensors}
    layout = EXPORTER.layout(tensors, formats, EXPORTER.metadata(checkpoint))
    with path.open("wb") as file:
        file.write(layout.files[ITSELF].header)
        file.truncate(layout.size)
        for tensor in tensors:
            assert isinstance(tensor.source, StoredTensor)
            file.seek(layout.parts[tensor.name][WHOLE].offset)
            file.write(tensor.source.raw(0, tensor.source.matrix[0]).tobytes())


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (7, (gguf.GGUFValueType.UINT32, None)),
        (-7, (gguf.GGUFValueType.INT32, None)),
        (2**40, (gguf.GGUFValueType.INT64, None)),
        (2**63, (gguf.GGUFValueType.UINT64, None)),
        (np.int64(7), (gguf.GGUFValueType.UINT32, None)),
        (0.5, (gguf.GGUFValueType.FLOAT32, None)),
        (True, (gguf.GGUFValueType.BOOL, None)),
        ("é中", (gguf.GGUFValueType.STRING, None)),
        ([1, -2, 3], (gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32)),
        ([1, 2**40], (gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT64)),
        ([1.5, 2], (gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.FLOAT32)),
        ([True, False], (gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.BOOL)),
        (["a", "é中", ""], (gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING)),
        (Typed(0.1, ValueType.FLOAT64), (gguf.GGUFValueType.FLOAT64, None)),
        (
            Typed([1, 2], ValueType.ARRAY, ValueType.UINT16),
            (gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT16),
        ),
    ],
)
def test_values_get_their_type_and_read_back(value: Any, expected: tuple[Any, Any], tmp_path: Path) -> None:
    path = write_header(tmp_path / "a.gguf", {"general.architecture": "x", "key": value}, [output("t", (4,))])
    field = gguf.GGUFReader(path).fields["key"]
    plain = value.value if isinstance(value, Typed) else value

    assert (field.types[0], field.types[1] if len(field.types) > 1 else None) == expected
    assert field.contents() == plain
    assert open_checkpoint(path).metadata["key"] == plain


@pytest.mark.parametrize("value", [None, {"a": 1}, [1, "a"], [[1], [2]], 2**64, [2**63, -1]])
def test_values_without_a_type_are_refused(value: Any, tmp_path: Path) -> None:
    with pytest.raises(FormatError):
        write_header(tmp_path / "a.gguf", {"key": value})


def test_layout_is_that_of_the_gguf_package(tmp_path: Path) -> None:
    shapes = {"a.weight": (3, 5), "b": (7,), "c": (2, 3, 32), "d": ()}
    ours = write_header(
        tmp_path / "ours.gguf",
        {"general.architecture": "x", "x.block_count": 2},
        [output(name, shape) for name, shape in shapes.items()],
    )
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "x")
    writer.add_block_count(2)
    writer.add_file_type(0)
    for name, shape in shapes.items():
        writer.add_tensor(name, np.zeros(shape or (1,), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    assert ours.read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_every_type_takes_the_bytes_that_it_should() -> None:
    # The gguf package has Q8_1, which files never hold, as it was in 2023, and lacks the newest types.
    names = [name for name in GGML_TYPES if name in gguf.GGMLQuantizationType.__members__ and name != "Q8_1"]
    assert set(EXPORTER.formats) < set(names)
    layout = EXPORTER.layout([output(name, (3, 512)) for name in names], {name: name for name in names}, {})

    for name, parts in layout.parts.items():
        region = parts[WHOLE]
        block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
        assert region.nbytes == 3 * 512 // block * nbytes
        assert region.offset % EXPORTER.alignment == 0


@pytest.mark.parametrize(
    ("shape", "name", "message"),
    [
        ((2, 96), "Q4_K", "multiple of 256.*96"),
        ((2, 96), "INT4_G32", "INT4_G32.*Q8_0"),
        ((1, 2, 3, 4, 32), "F32", "4 dimensions"),
    ],
)
def test_what_gguf_cannot_hold_is_refused(shape: tuple[int, ...], name: str, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        EXPORTER.layout([output("t", shape)], {"t": name}, {})


def test_read_back_gives_the_layout_and_refuses_damage(tmp_path: Path) -> None:
    tensors = [output("blk.0.a.weight", (3, 5)), output("b", (7,))]
    layout = EXPORTER.layout(tensors, {"b": "F16"}, {"general.architecture": "x"})
    path = tmp_path / "a.gguf"
    path.write_bytes(layout.files[ITSELF].header.ljust(layout.size, b"\0"))
    assert EXPORTER.read_back(path) == layout

    path.write_bytes(b"GGUX" + path.read_bytes()[4:])
    with pytest.raises(VerificationError):
        EXPORTER.read_back(path)
    path.write_bytes(layout.files[ITSELF].header)
    with pytest.raises(VerificationError):
        EXPORTER.read_back(path)


def test_gguf_of_an_unknown_architecture_is_copied_unchanged(tmp_path: Path) -> None:
    source = small_gguf()
    source.metadata = {
        **source.metadata,
        "general.architecture": gguf_value(ValueType.STRING, "neverheardof"),
        "neverheardof.block_count": gguf_value(ValueType.UINT32, 2),
        "general.file_type": gguf_value(ValueType.UINT32, 2),
        "general.quantization_version": gguf_value(ValueType.UINT32, 1),
        "split.count": gguf_value(ValueType.UINT16, 1),
        "general.alignment": gguf_value(ValueType.UINT32, 64),
    }
    source.alignment = 64
    before = open_checkpoint(source.write(tmp_path / "a.gguf"))
    path = tmp_path / "b.gguf"
    copy_gguf(before, path)
    after = open_checkpoint(path)

    dropped = {"general.alignment", "fewbits.plan", "split.count"}
    assert set(source.metadata) - set(after.metadata) == dropped
    assert set(after.metadata) <= set(source.metadata)
    assert after.metadata["general.quantization_version"] == 2
    for key in set(after.metadata) - {"general.quantization_version", "general.file_type"}:
        assert after.metadata[key] == before.metadata[key], key
        assert after.metadata_types[key] == before.metadata_types[key], key
    assert list(after.tensors) == list(before.tensors)
    for name, tensor in before.tensors.items():
        copied = after.tensors[name]
        assert (copied.shape, copied.dtype) == (tensor.shape, tensor.dtype)
        assert isinstance(tensor, StoredTensor)
        assert isinstance(copied, StoredTensor)
        np.testing.assert_array_equal(copied.raw(0, copied.matrix[0]), tensor.raw(0, tensor.matrix[0]))


def test_gguf_source_keeps_types_of_what_is_not_quantized(tmp_path: Path) -> None:
    tensors = [
        gguf_tensor("token_embd.weight", (4, 32), "F16"),
        gguf_tensor("blk.3.attn_q.weight", (4, 32), "Q4_0"),
        gguf_tensor("blk.3.attn_norm.weight", (32,), "F32"),
        gguf_tensor("blk.3.ffn_gate_inp.weight", (4, 32), "F16"),
        gguf_tensor("blk.3.ids", (4,), "I32"),
        gguf_tensor("output.weight", (4, 32), "BF16"),
    ]
    file = GgufFile({"general.architecture": gguf_value(ValueType.STRING, "x")}, tensors)
    found = EXPORTER.tensors(open_checkpoint(file.write(tmp_path / "a.gguf")))

    assert [(t.role, t.quantizable, t.plain, t.block) for t in found] == [
        ("embedding", True, "F16", None),
        ("linear", True, "Q4_0", 3),
        ("other", False, "F32", 3),
        ("other", False, "F16", 3),
        ("other", False, "I32", 3),
        ("head", True, "BF16", None),
    ]


@pytest.mark.parametrize(
    ("name", "shape", "allowed"),
    [
        ("blk.0.attn_q.weight", (8, 32), True),
        ("blk.0.ffn_down_exps.weight", (4, 8, 32), True),
        ("token_embd.weight", (8, 32), True),
        ("output.weight", (8, 32), True),
        ("blk.0.attn_q.bias", (8,), False),
        ("blk.0.attn_q.bias", (8, 32), False),
        ("blk.0.attn_norm.weight", (32,), False),
        ("blk.0.attn_q_norm.weight", (4, 32), False),
        ("blk.0.ffn_gate_inp.weight", (4, 32), False),
        ("blk.0.ffn_gate_inp_shexp.weight", (32,), False),
        ("blk.0.x.weight", (1, 1, 32), False),
        ("position_embd.weight", (8, 32), False),
        ("v.position_embd.weight", (8, 32), False),
        ("token_types.weight", (8, 32), False),
        ("blk.0.ssm_conv1d.weight", (8, 4), False),
        ("blk.0.ssm_a", (8, 32), False),
        ("blk.0.time_mix_w1.weight", (8, 32), False),
        ("blk.0.time_mix_decay_w2.weight", (8, 32), False),
        ("blk.0.time_mix_key.weight", (8, 32), True),
        ("rope_freqs.weight", (8,), False),
    ],
)
def test_which_tensors_llama_cpp_takes_quantized(name: str, shape: tuple[int, ...], allowed: bool) -> None:
    assert allows_quantization(name, shape) is allowed


def test_roles_and_blocks_are_read_from_names() -> None:
    assert role_of("per_layer_token_embd.weight", (8, 32)) == "embedding"
    assert role_of("output_norm.weight", (32,)) == "other"
    assert block_of("blk.17.ffn_up.weight") == 17
    assert block_of("enc.blk.4.attn_q.weight") == 4
    assert block_of("output.weight") is None


def test_formats_go_from_most_to_fewest_bits() -> None:
    bits = [GGML_TYPES[name].bits for name in EXPORTER.formats]

    assert bits == sorted(bits, reverse=True)


def test_exporters_are_found_by_name() -> None:
    assert exporter_names() == [
        "gguf", "compressed-tensors", "gptq", "awq", "mlx", "bitsandbytes", "modelopt", "onnx"
    ]  # fmt: skip
    assert get_exporter("GGUF") is EXPORTER
    with pytest.raises(FormatError, match=r"'onyx'.*gguf"):
        get_exporter("onyx")


def test_general_metadata_comes_from_the_model_card(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    card = "license: apache-2.0\nlanguage:\n- en\n- 'zh'\ntags: [chat, \"small\"]\nmodel-index:\n- name: x\n"
    readme.write_text(f"---\n{card}---\nlicense: mit\n")

    assert front_matter(readme) == {
        "license": "apache-2.0",
        "language": ["en", "zh"],
        "tags": ["chat", "small"],
        "model-index": ["name: x"],
    }
    readme.write_text("# No front matter\n---\nlicense: mit\n---\n")
    assert front_matter(readme) == {}
    assert front_matter(tmp_path / "none") == {}


def test_model_name_is_without_owner_and_cache() -> None:
    cache = Path("/c/models--HuggingFaceTB--SmolLM2-135M/snapshots/0123abc")

    assert model_name(cache, {}) == "SmolLM2-135M"
    assert model_name(Path("/m/phi-3"), {}) == "phi-3"
    assert model_name(Path("/m/a"), {"_name_or_path": "owner/Model-7B/"}) == "Model-7B"


def test_directory_without_a_known_architecture_is_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, "safetensors", {}, (), config={"model_type": "jamba"})
    for method in (EXPORTER.tensors, EXPORTER.metadata):
        with pytest.raises(ArchitectureError, match="jamba"):
            method(checkpoint)
