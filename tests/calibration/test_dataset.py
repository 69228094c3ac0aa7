"""Datasets of the Hugging Face hub, here as folders that the package datasets reads the same way."""

import json
import shutil
import sys

import pyarrow
import pytest
from pyarrow import parquet

from fewbits.calibration.dataset import DatasetName, parse_dataset, read_dataset
from fewbits.calibration.text import calibration_tokens
from fewbits.checkpoint.source import open_checkpoint
from fewbits.errors import CalibrationError, MissingExtraError
from fewbits.language_model.text_tokenizer import open_tokenizer

LINES = [
    f"Line {i}: few bits, same model; a budget goes in, the best file comes out. " * 6 for i in range(20)
]
CHATS = [
    [{"role": "user", "content": f"Question {i}?"}, {"role": "assistant", "content": "Few bits. " * i}]
    for i in range(1, 30)
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "owner" / "texts" / "data"
    folder.mkdir(parents=True)
    table = pyarrow.table({"id": range(len(LINES)), "text": LINES, "title": ["Bits"] * len(LINES)})
    parquet.write_table(table, folder / "train-00000-of-00001.parquet")
    parquet.write_table(table.slice(0, 2), folder / "test-00000-of-00001.parquet")
    return folder.parent


@pytest.fixture
def chats(tmp_path):
    folder = tmp_path / "chats"
    folder.mkdir()
    parquet.write_table(pyarrow.table({"messages": CHATS, "n": range(len(CHATS))}), folder / "train.parquet")
    return folder


@pytest.fixture
def chat_model(tiny_llama, tmp_path):
    directory = tmp_path / "chat-model"
    shutil.copytree(tiny_llama, directory)
    template = "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}"
    (directory / "chat_template.jinja").write_text(template)
    return open_checkpoint(directory)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hub:owner/name", DatasetName("owner/name")),
        ("hub:owner/name@main:en:train:body", DatasetName("owner/name", "main", "en", "train", "body")),
        ("hub:owner/name:::body", DatasetName("owner/name", column="body")),
        ("hub:name::test", DatasetName("name", split="test")),
    ],
)
def test_names_have_parts_that_may_be_left_out(text, name):
    assert parse_dataset(text) == name
    assert str(name) == text.removeprefix("hub:")


@pytest.mark.parametrize("text", ["hub:", "hub::en", "hub:a:b:c:d:e"])
def test_other_names_are_refused(text):
    with pytest.raises(CalibrationError, match="OWNER/NAME"):
        parse_dataset(text)


def test_rows_are_read_until_there_is_enough_text(texts):
    found, records = read_dataset(DatasetName(str(texts)), 1000)
    assert (found.split, found.column) == ("train", "text")
    assert 0 < len(records) < len(LINES)
    assert records == [{"text": line} for line in LINES[: len(records)]]
    assert sum(len(r["text"].strip()) for r in records[:-1]) < 1000


def test_split_and_column_can_be_named(texts):
    found, records = read_dataset(DatasetName(str(texts), split="test", column="title"), 10**6)
    assert str(found) == f"{texts}::test:title"
    assert records == [{"text": "Bits"}] * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "dev"}, "has no such split: found dev; allowed: train, test"),
        ({"column": "body"}, "has no such column: found body; allowed: id, text, title"),
        ({"column": "id"}, "column id .* is no text: found 0; allowed: .*text, title"),
        ({"config": "fr"}, "can't be read: found .*fr.*not found"),
    ],
)
def test_what_isn_t_there_is_refused_with_what_is(texts, changes, message):
    with pytest.raises(CalibrationError, match=message):
        read_dataset(DatasetName(str(texts), **changes), 100)


def test_a_dataset_that_can_t_be_had_is_refused():
    with pytest.raises(CalibrationError, match="the dataset nobody/never-heard-of-it can't be read"):
        read_dataset(DatasetName("nobody/never-heard-of-it"), 100)


def test_without_a_column_of_the_usual_name_the_only_text_is_taken(tmp_path):
    for name, columns in {"one": {"n": [1], "body": ["a"]}, "two": {"head": ["a"], "body": ["b"]}}.items():
        (tmp_path / name).mkdir()
        parquet.write_table(pyarrow.table(columns), tmp_path / name / "train.parquet")
    assert read_dataset(DatasetName(str(tmp_path / "one")), 10)[0].column == "body"
    with pytest.raises(CalibrationError, match=r"which column .*allowed: head, body.*hub:OWNER/NAME:CONFIG"):
        read_dataset(DatasetName(str(tmp_path / "two")), 10)


def test_the_missing_package_is_named_with_its_command(texts, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fewbits\[datasets\]'"):
        read_dataset(DatasetName(str(texts)), 100)


def test_a_dataset_s_text_becomes_tokens(texts, tiny_llama, monkeypatch):
    monkeypatch.chdir(texts.parent.parent)  # so that OWNER/NAME is a folder
    checkpoint = open_checkpoint(tiny_llama)
    tokenizer = open_tokenizer(checkpoint)
    # 1,536 characters are asked for at 24 a token; the eighth line completes them.
    lines, length = [], 0
    for line in LINES:
        lines.append(line.strip())
        length += len(line.strip())
        if length >= 24 * 64:
            break
    ids = tokenizer.encode("\n\n".join(lines), markup=False)
    expected = [ids[i : i + 8] for i in range(0, len(ids) - 7, 8)]

    found = calibration_tokens(checkpoint, "hub:owner/texts", 64, 8)
    assert len(found.blocks) == 8
    assert all(block in expected for block in found.blocks.tolist())
    assert found.name == "owner/texts::train:text"
    assert found.warnings == ()
    by_folder = calibration_tokens(checkpoint, texts, 64, 8)
    assert by_folder.sha256 == found.sha256
    assert by_folder.blocks.tolist() == found.blocks.tolist()
    assert calibration_tokens(checkpoint, "hub:owner/texts::test", 64, 8).sha256 != found.sha256


def test_conversations_see_the_chat_template(chats, chat_model, tmp_path):
    (tmp_path / "chats.jsonl").write_text("\n".join(json.dumps({"messages": chat}) for chat in CHATS))
    by_dataset = calibration_tokens(chat_model, chats, 2048, 16)
    by_lines = calibration_tokens(chat_model, tmp_path / "chats.jsonl", 2048, 16)
    assert by_dataset.blocks.tolist() == by_lines.blocks.tolist()
    assert len(by_dataset.blocks) > 16
