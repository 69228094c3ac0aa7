"""Text to calibrate on."""

import hashlib
import json
import shutil

import numpy as np
import pytest

import fewbits
from fewbits.calibration import generated_text
from fewbits.calibration.default_text import default_text as calibration_default_text
from fewbits.calibration.sampling import draw
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


def test_a_text_shorter_than_asked_for_is_named(checkpoint, sample_text):
    enough = calibration_tokens(checkpoint, sample_text, 1000, 64)
    assert (len(enough.blocks), enough.warnings) == (15, ())
    few = calibration_tokens(checkpoint, sample_text, 1_000_000, 64)
    (warning,) = few.warnings
    assert "sample.txt" in warning
    assert f"{few.blocks.size:,} tokens" in warning
    assert "1,000,000" in warning


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


@pytest.fixture
def chat_model(tiny_llama, tmp_path):
    directory = tmp_path / "chat"
    shutil.copytree(tiny_llama, directory)
    (directory / "chat_template.jinja").write_text(
        "Today is {{ strftime_now('%d %b %Y') }}.\n"
        "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant> {% endif %}"
    )
    return open_checkpoint(directory)


def test_json_lines_with_messages_see_the_chat_template(tiny_llama, chat_model, tmp_path):
    path = tmp_path / "chat.jsonl"
    messages = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So. " * 10}]
    path.write_text(json.dumps({"messages": messages}) + "\n")
    tokenizer = open_tokenizer(chat_model)
    # Templates that say which day it is would give other statistics tomorrow.
    text = "Today is 01 Jan 2025.\n<user> How?\n<assistant> " + "So. " * 10 + "\n"
    ids = tokenizer.encode(text, markup=True)
    found = calibration_tokens(chat_model, path, 1024, 8)
    assert sorted(found.blocks.tolist()) == sorted(ids[i : i + 8] for i in range(0, len(ids) - 7, 8))
    with pytest.raises(EvaluationError, match="no chat template"):
        calibration_tokens(open_checkpoint(tiny_llama), path, 1024, 8)


def test_the_same_day_is_told_from_a_gguf_file_s_template(chat_model, tmp_path):
    fewbits.quantize(chat_model.path, tmp_path / "chat.gguf", format="Q8_0", effort="fast")
    tokenizers = [open_tokenizer(c) for c in (chat_model, open_checkpoint(tmp_path / "chat.gguf"))]
    messages = [{"role": "user", "content": "How?"}]
    for answer in (False, True):
        first, second = (tokenizer.conversation(messages, answer=answer) for tokenizer in tokenizers)
        assert first == second
        assert first.startswith("Today is 01 Jan 2025.")
        assert first.endswith("<assistant> ") == answer


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
    assert found.warnings == ()
    assert found.name.endswith("the model's own writing")
    assert found.sha256 != default_text().sha256
    assert calibration_tokens(checkpoint, None, 8192, 128).sha256 == found.sha256


def test_the_default_text_is_written_again_the_same_and_kept(checkpoint, tmp_path, monkeypatch):
    tokenizer = open_tokenizer(checkpoint)
    first = generated_text.generated_text(checkpoint, tokenizer)
    (file,) = (tmp_path / "cache" / "generated").iterdir()
    data = file.read_bytes()
    file.unlink()
    assert generated_text.generated_text(checkpoint, tokenizer) == first
    assert file.read_bytes() == data
    monkeypatch.setattr(generated_text, "_whole_model", None)
    assert generated_text.generated_text(checkpoint, tokenizer) == first
    file.write_bytes(b"{")
    with pytest.raises(TypeError):  # damaged, so that it would be written again
        generated_text.generated_text(checkpoint, tokenizer)


def test_a_chat_model_answers_questions_in_its_markup(chat_model):
    tokenizer = open_tokenizer(chat_model)
    name, passages = calibration_default_text(chat_model, tokenizer, 8192)
    assert name.endswith("the model's own writing and answers")
    assert [passage.markup for passage in passages] == [False, True]
    chats = passages[1].text.split("Today is 01 Jan 2025.\n")
    assert chats[0] == ""
    assert len(chats) == 1 + len(generated_text._QUESTIONS)
    for question, chat in zip(generated_text._QUESTIONS, chats[1:], strict=True):
        begun = f"<user> {question}\n<assistant> "
        assert chat.startswith(begun)
        assert len(chat) > len(begun) + 8
    found = calibration_tokens(chat_model, None, 8192, 64)
    begun = tokenizer.encode("<user> ", markup=True)
    text = [tokenizer.decode(block) for block in found.blocks.tolist()]
    assert len(begun) > 1
    assert sum("<user> " in block for block in text) > 8


def test_sequences_are_continued_as_each_would_be_alone(checkpoint):
    """By the model's own most likely tokens, with starts of different lengths read together."""
    import torch

    tokenizer = open_tokenizer(checkpoint)
    texts = ("The quick brown fox", "Few bits, same model: a budget goes in", "def")
    starts = [tokenizer.encode(text, markup=False) for text in texts]
    model = generated_text._whole_model(checkpoint)
    rows = generated_text._continue(model, starts)
    length = max(map(len, starts)) + generated_text._NEW_TOKENS
    assert [len(row) for row in rows] == [length] * 3
    with torch.inference_mode():
        for start, row in zip(starts, rows, strict=True):
            assert row[: len(start)] == start
            # What was sampled is likely by the model that reads the sequence alone and at once.
            p = torch.log_softmax(model(input_ids=torch.tensor([row])).logits.float(), -1)[0]
            chosen = p[torch.arange(length - 1), torch.tensor(row[1:])][len(start) - 1 :]
            entropy = -(p.exp() * p).sum(-1)[len(start) - 1 : -1]
            deviation = (p.exp() * (p + entropy.mean()).square()).sum(-1).mean().sqrt()
            assert abs(float(chosen.mean() + entropy.mean())) < 4 * float(deviation) / len(chosen) ** 0.5


def test_large_models_write_less_or_nothing(chat_model, monkeypatch):
    tokenizer = open_tokenizer(chat_model)
    parameters = sum(np.prod(t.shape) for t in chat_model.tensors.values())
    prompts = len(generated_text._BEGINNINGS) + len(generated_text._QUESTIONS)
    whole = int(parameters) * prompts * generated_text._NEW_TOKENS
    monkeypatch.setattr(generated_text, "_MOST_WORK", whole // 4 + 1)
    quarter = generated_text.generated_text(chat_model, tokenizer)
    assert quarter.answers.count("Today is") == -(-len(generated_text._QUESTIONS) // 4)
    monkeypatch.setattr(generated_text, "_MOST_WORK", whole // 8 - 1)
    assert generated_text.generated_text(chat_model, tokenizer) == generated_text.Written()
    found = calibration_tokens(chat_model, None, 4096, 128)
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
