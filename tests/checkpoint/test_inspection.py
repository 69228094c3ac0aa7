"""`fewbits inspect`: exact sizes, how a file was made, and all of it in less than 0.4 s."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from fractions import Fraction

import pytest
import typer
from typer.testing import CliRunner

from fewbits.checkpoint.gguf_constants import ValueType
from fewbits.cli.inspect import inspect as inspect_command
from fewbits.errors import CheckpointError
from fewbits.inspection import Fallback, inspect
from model_files import GgufFile, gguf_tensor, gguf_value, small_gguf, small_tensors, write_hf_directory

app = typer.Typer()
app.command()(inspect_command)


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_gguf(tmp_path):
    path = small_gguf().write(tmp_path / "m.gguf")
    found = inspect(path)
    by_name = {t.name: t for t in found.tensors}

    assert (found.path, found.container, found.architecture) == (str(path), "gguf", "llama")
    assert found.parameters == 16 + 96 + 4 + 30 + 256 + 64
    assert found.nbytes == 16 * 4 + 3 * 18 + 4 * 2 + 30 * 2 + 210 + 2 * 18
    assert found.file_bytes == path.stat().st_size
    assert Fraction(found.bits_per_weight) == Fraction(8 * found.nbytes / found.parameters)
    assert by_name["blk.0.b"].bits_per_weight == 4.5
    assert by_name["blk.1.b"].bits_per_weight == 6.5625
    assert by_name["blk.0.d"].shape == (2, 3, 5)
    assert [f.format for f in found.formats] == ["Q6_K", "F32", "BF16", "Q4_0", "IQ4_NL", "F16"]
    assert sum(f.nbytes for f in found.formats) == found.nbytes
    assert found.metadata["tokenizer.ggml.token_type"] == [3, 1, 6, 1]
    assert "fewbits.plan" not in found.metadata
    assert found.provenance["fewbits.plan"]["blk.0.a"] == {"format": "F32"}
    assert found.fallbacks == (Fallback("blk.0.b", "Q4_K", "Q4_0"),)
    assert "already quantized" in found.warnings[0]


def test_long_values_are_abbreviated(tmp_path):
    metadata = {
        "words": gguf_value(ValueType.ARRAY, [f"w{i}" for i in range(99)], ValueType.STRING),
        "text": gguf_value(ValueType.STRING, "x" * 5000),
        "fewbits.plan": gguf_value(ValueType.STRING, "not JSON"),
        "nan": gguf_value(ValueType.FLOAT32, float("nan")),
    }
    found = inspect(GgufFile(metadata, [gguf_tensor("a", (8,), "F32")]).write(tmp_path / "m.gguf"))

    assert found.metadata["words"] == [*(f"w{i}" for i in range(8)), "… 99 in all"]
    assert found.metadata["text"] == "x" * 200 + "… 5000 characters in all"
    assert found.provenance == {"fewbits.plan": "not JSON"}
    assert json.loads(found.to_json())["metadata"]["nan"] == "nan"


def test_hugging_face_directory(tmp_path):
    tensors = small_tensors() | {"model.layers.10.F8_E4M3_scale": ("F32", (1,), bytes(4))}
    config = {"architectures": ["LlamaForCausalLM"], "quantization_config": {"quant_method": "gptq"}}
    found = inspect(write_hf_directory(tmp_path / "m", [tensors, {"x": ("F32", (5,), bytes(20))}], config))

    assert found.architecture == "LlamaForCausalLM"
    assert found.nbytes == sum(len(data) for _, _, data in tensors.values()) + 20
    assert "gptq" in found.warnings[0]
    assert {t.name for t in found.tensors} == {*tensors, "x"}


def test_scales_beside_8_bit_weights_are_no_parameters(tmp_path):
    tensors = {
        "a.weight": ("F8_E4M3", (4, 8), bytes(32)),
        "a.weight_scale": ("F32", (4, 1), bytes(16)),
    }
    found = inspect(write_hf_directory(tmp_path / "m", [tensors]))

    assert found.parameters == 32
    assert found.bits_per_weight == 12.0


def test_json_is_one_object_and_nothing_else(tmp_path):
    path = small_gguf().write(tmp_path / "m.gguf")
    data = json.loads(run(path, "--json"))

    assert data["parameters"] == inspect(path).parameters
    assert data["tensors"][1] == {
        "name": "blk.0.b", "shape": [3, 32], "format": "Q4_0", "bits_per_weight": 4.5, "nbytes": 54
    }  # fmt: skip
    assert data["fallbacks"] == [{"tensor": "blk.0.b", "requested": "Q4_K", "format": "Q4_0"}]
    assert data["metadata"]["tokenizer.ggml.tokens"][0] == "<s>"


def test_table(tmp_path):
    output = run(small_gguf().write(tmp_path / "m.gguf"))

    for shown in ("466 parameters", "Q6_K", "6.5625", "blk.0.b", "3 x 32", "general.architecture", "llama",
                  "fallback: blk.0.b is Q4_0, Q4_K doesn't fit its rows",
                  "as a source to quantize: m.gguf is"):  # fmt: skip
        assert shown in output


def test_table_joins_what_differs_in_the_block_number_alone(tmp_path):
    tensors = [gguf_tensor(f"blk.{i}.w.weight", (2, 32), "Q8_0") for i in range(12)]
    tensors.append(gguf_tensor("blk.12.w.weight", (2, 32), "F16"))
    output = run(GgufFile({}, tensors).write(tmp_path / "m.gguf"))

    assert [line.split() for line in output.splitlines() if ".w.weight" in line] == [
        ["blk.*.w.weight", "2", "x", "32", "Q8_0", "12", "8.5000", "816"],
        ["blk.12.w.weight", "2", "x", "32", "F16", "1", "16.0000", "128"],
    ]


def test_control_characters_do_not_reach_the_terminal(tmp_path):
    metadata = {"general.name": gguf_value(ValueType.STRING, b"a\x1b[2Jb\xff[bold]c")}
    output = run(GgufFile(metadata, [gguf_tensor("x\x07", (8,), "F32")]).write(tmp_path / "m.gguf"))

    assert "\x1b" not in output
    assert "\x07" not in output
    assert "a\\x1b[2Jb\\udcff[bold]c" in output


def test_errors_go_to_standard_error_with_status_2(tmp_path):
    result = CliRunner().invoke(app, [str(tmp_path / "none"), "--json"])

    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("fewbits: no model at ")
    with pytest.raises(CheckpointError):
        inspect(tmp_path / "none")


def test_starts_fast_and_imports_nothing_heavy(tmp_path):
    """Processor time from process start, with a vocabulary of 150,000 tokens; the best of five.

    Typer imports pydantic where that is installed, as it is for these tests: 0.1 s of the bound.
    """
    tokens = gguf_value(ValueType.ARRAY, [f"token number {i}" for i in range(150_000)], ValueType.STRING)
    tensors = [gguf_tensor(f"blk.{i}.w", (2, 32), "Q8_0") for i in range(300)]
    path = GgufFile({"tokenizer.ggml.tokens": tokens}, tensors).write(tmp_path / "m.gguf")
    code = (
        "import sys, typer; from fewbits.cli.inspect import inspect\n"
        "app = typer.Typer(); app.command()(inspect)\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "heavy = {'gguf', 'torch', 'transformers', 'huggingface_hub', 'fewbits.formats.registry'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    for option in ([], ["--json"]):
        times = []
        for _ in range(5):
            before = os.times()
            subprocess.run([sys.executable, "-c", code, path, *option], check=True, capture_output=True)
            after = os.times()
            times.append(
                after.children_user - before.children_user + after.children_system - before.children_system
            )
        assert min(times) < 0.6
