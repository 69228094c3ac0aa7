import hashlib

import pytest

from fewbits.errors import EvaluationError
from fewbits.evaluation.text import default_text, read_text


def test_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("Größe\r\nzwei".encode())

    text = read_text(path)

    assert (text.name, text.text) == ("a.txt", "Größe\r\nzwei")
    assert text.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_default_is_long_named_and_the_same_each_time():
    text = default_text()

    assert len(text.text) > 200_000
    assert "Python" in text.name
    assert text == read_text(None)
    assert text.sha256 == hashlib.sha256(text.text.encode()).hexdigest()


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), (b"ab\xff\xfe", "byte 0xff at offset 2"), (b"", "empty"), (b" \n", "empty")],
)
def test_refused(tmp_path, content, message):
    path = tmp_path / "a.txt"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(EvaluationError, match=message):
        read_text(path)


def test_a_directory_is_refused(tmp_path):
    with pytest.raises(EvaluationError, match="can't read"):
        read_text(tmp_path)
