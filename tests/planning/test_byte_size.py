import pytest

from fewbits.errors import BudgetError
from fewbits.planning.byte_size import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("91MB", 91_000_000),
        ("91 mb", 91_000_000),
        ("1.5GiB", 1_610_612_736),
        ("512", 512),
        (77, 77),
        ("2k", 2000),
    ],
)
def test_sizes_people_write(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "MB", "-3MB", "91 parsecs", "0", "1e3", "nan"])
def test_what_is_no_size_is_refused_with_what_is_allowed(text):
    with pytest.raises(BudgetError, match="MiB"):
        parse_bytes(text)


def test_format_bytes():
    assert format_bytes(999) == "999 B"
    assert format_bytes(91_000_000) == "91.0 MB"
