"""The table of docs/formats.md, held against the code."""

import re
from pathlib import Path

import pytest

from fewbits.formats import get_format
from fewbits.formats.registry import single_formats

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"
ROW = re.compile(r"^\| (\w+) \| (\d+) \| (\d+) \| ([\d.]+) \| .* \| (\w+) \|$", re.MULTILINE)
DOCUMENTED = {match[1]: match.groups()[1:] for match in ROW.finditer(PAGE.read_text(encoding="utf-8"))}


def test_every_gguf_format_has_a_row():
    gguf = {
        name
        for name in single_formats()
        if type(get_format(name)).__module__.startswith("fewbits.formats.gguf")
    }

    assert set(DOCUMENTED) == gguf


@pytest.mark.parametrize("name", sorted(DOCUMENTED))
def test_a_row_states_what_the_code_does(name):
    fmt = get_format(name)
    block, nbytes, bits, fallback = DOCUMENTED[name]

    assert fmt.block == int(block)
    assert fmt.nbytes((1, fmt.block)) == int(nbytes)
    assert float(fmt.bits) == float(bits)
    assert fmt.fallback == fallback
