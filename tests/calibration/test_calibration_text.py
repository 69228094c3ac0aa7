"""Text to calibrate on."""

import hashlib
import json

import numpy as np
import pytest

from fewbits.calibration import generated_text
from fewbits.calibration.head import draw
from fewbits.calibration.text import calibration_tokens
from fewbits.checkpoint.source import open_checkpoint
from fewbits.errors import CalibrationError, EvaluationError
from fewbits.evaluation.text import default_text
from fewbits.language_model.text_tokenizer import open_tokenizer


@pytest.fixture(scope="module")
def checkpoint(tiny_llama):
    return open_checkpoint(tiny_llama)


def test_blocks_are_pieces_of_the_text_in_random_order(checkpoint, sample_text):
    found = calibration_tokens(checkpoint, sample_text, 1024, 64, seed=1)
    ids = open_tokenizer(checkpoint).encode(sample_text.read_text(), markup=False)
    pieces = [ids[i : i + 64] for i in range(0, len(ids) - 63, 64)]
    assert found.blocks.shape == (16, 64)
    assert found.blocks.dtype == np.int64
    places = [pieces.index(block) for block in found.blocks.tolist()]
    assert places != sorted(places)
    assert len(set(places)) == 16
    assert found.sha256 == hashlib.sha256(sample_text.read_bytes()).hexdigest()
    assert (found.held_out, found.counts) == (2, (14 * 64, 2 * 64))


def test_the_seed_chooses_the_blocks(checkpoint, sample_text):
    def blocks(seed):
        return calibration_tokens(checkpoint, sample_text, 512, 64, seed).blocks.tolist()

    assert blocks(0) == blocks(0)
    assert blocks(0) != blocks(1)


def test_a_short_text_gives_what_it_has_and_too_short_a_text_is_refused(checkpoint, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("The quick brown fox. " * 60)
    few = calibration_tokens(checkpoint, path, 4096, 64)
    assert 2 <= len(few.blocks) < 64
    path.write_text("The quick brown fox.")
    with pytest.raises(CalibrationError, match=r"short.txt is too short to calibrate on: found \d+ tokens"):
        calibration_tokens(checkpoint, path, 4096, 64)
    with pytest.raises(CalibrationError, match="too few tokens"):
        calibration_tokens(checkpoint, path, 64, 64)


def test_json_lines_with_text(checkpoint, tmp_path):
    path = tmp_path / "text.jsonl"
    lines = ["The quick brown fox jumps over the lazy dog. " * 8, "Größe 12,5 °C\nund mehr. " * 8]
    path.write_text("\n".join(json.dumps({"text": line}) for line in lines) + "\n\n")
    tokenizer = open_tokenizer(checkpoint)
    end = sorted(tokenizer.eos_ids)[:1]
    expected = [t for line in lines for t in tokenizer.encode(line, markup=False) + end]
    count = len(expected) // 16
    found = calibration_tokens(checkpoint, path, 16 * count, 16)
    assert sorted(found.blocks.tolist()) == sorted(expected[16 * i : 16 * i + 16] for i in range(count))


def test_json_lines_with_messages_see_the_chat_template(tiny_llama, tmp_path):
    import shutil

    directory = tmp_path / "chat"
    shutil.copytree(tiny_llama, directory)
    (directory / "chat_template.jinja").write_text(
        "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}"
    )
    path = tmp_path / "chat.jsonl"
    messages = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So. " * 10}]
    path.write_text(json.dumps({"messages": messages}) + "\n")
    checkpoint = open_checkpoint(directory)
    tokenizer = open_tokenizer(checkpoint)
    ids = tokenizer.encode("<user> How?\n<assistant> " + "So. " * 10 + "\n", markup=True)
    found = calibration_tokens(checkpoint, path, 1024, 8)
    assert sorted(found.blocks.tolist()) == sorted(ids[i : i + 8] for i in range(0, len(ids) - 7, 8))
    with pytest.raises(EvaluationError, match="no chat template"):
        calibration_tokens(open_checkpoint(tiny_llama), path, 1024, 8)


@pytest.mark.parametrize("line", ["{", '{"body": "text"}', "[1]", '{"text": 3}'])
def test_other_json_lines_are_refused_by_number(checkpoint, tmp_path, line):
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(CalibrationError, match="line 2 is no text"):
        calibration_tokens(checkpoint, path, 64, 8)


def test_bytes_that_are_no_text_are_refused(checkpoint, tmp_path):
    (tmp_path / "latin.txt").write_bytes("Größe".encode("latin-1"))
    with pytest.raises(CalibrationError, match="byte 0xf6 at offset 2"):
        calibration_tokens(checkpoint, tmp_path / "latin.txt", 64, 8)
    with pytest.raises(CalibrationError, match="can't read the text"):
        calibration_tokens(checkpoint, tmp_path / "none.txt", 64, 8)


def test_the_default_text_needs_no_file_and_is_not_what_evaluation_uses(checkpoint):
    found = calibration_tokens(checkpoint, None, 8192, 128)
    assert found.blocks.shape == (64, 128)
    assert "model's own writing" in found.name
    assert found.sha256 != default_text().sha256
    assert calibration_tokens(checkpoint, None, 8192, 128).sha256 == found.sha256


def test_a_large_model_writes_nothing(checkpoint, monkeypatch):
    monkeypatch.setattr(generated_text, "_MOST_PARAMETERS", 1)
    found = calibration_tokens(checkpoint, None, 4096, 128)
    assert "writing" not in found.name
    assert found.blocks.shape == (32, 128)


def test_labels_are_drawn_with_their_probabilities():
    import torch

    p = torch.softmax(2 * torch.randn(150, generator=torch.Generator().manual_seed(0)), 0)
    labels = draw(p.expand(40000, 150).to(torch.bfloat16), torch.Generator().manual_seed(1))
    found = torch.bincount(labels[:, 0], minlength=150) / 40000
    assert len(found) == 150
    assert float((found - p).abs().max()) < 0.01
    assert float((found - p).abs().sum()) < 0.08
