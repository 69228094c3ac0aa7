"""Running a driver in a Python of its own, with drivers that need no runtime, and what is said when it fails."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from fewbits.errors import RuntimeFailedError
from fewbits.runtimes import drive, process, registry
from fewbits.runtimes.process import find_python, run_runtime

WORKS = """
import numpy as np
REQUIREMENTS = ("numpy>=2.0",)
def logits(model, tokens):
    print("noise of a library")
    return np.outer(tokens, np.arange(5)) + len(model)
def generate(model, tokens, count):
    return [tokens[-1] + 1 + i for i in range(count)]
"""


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """A function: makes a driver of this text known as `made`."""

    def make(text):
        path = tmp_path / "made_driver.py"
        path.write_text(text)
        monkeypatch.setitem(registry._DRIVERS, "made", str(path))
        registry.requirements_of.cache_clear()
        return path

    return make


def test_an_answer_holds_logits_tokens_and_versions(driver, tmp_path):
    driver(WORKS)
    answer = run_runtime("made", tmp_path, [2, 3, 4], count=2)

    assert answer.logits.dtype == np.float32
    assert np.array_equal(answer.logits, np.outer([2, 3, 4], np.arange(5)) + len(str(tmp_path.resolve())))
    assert answer.generated == (5, 6)
    assert answer.versions == {"numpy": np.__version__}
    assert (answer.arithmetic, answer.rounds_activations, answer.kv_cache) == ("float32", True, "")


def test_a_driver_says_how_it_runs_a_model(driver, tmp_path):
    driver(
        WORKS
        + "def arithmetic(model): return 'bfloat16'\n"
        + "def rounds_activations(model): return 'float' not in model\n"
        + "def kv_cache(model): return 'fp8_e4m3' if 'float' not in model else 'float'\n"
    )
    for name, rounds, kept in (("made", True, "fp8_e4m3"), ("float", False, "float")):
        (tmp_path / name).mkdir()
        answer = run_runtime("made", tmp_path / name, [1])
        assert answer.arithmetic == "bfloat16"
        assert (answer.rounds_activations, answer.kv_cache) == (rounds, kept)


@pytest.mark.parametrize("python", [Path(sys.executable), Path(sys.prefix)])
def test_another_python_is_named_by_its_path_or_its_environment(driver, tmp_path, python):
    driver(WORKS.replace("def logits", "import os\nassert 'PYTHONPATH' not in os.environ\ndef logits"))

    assert run_runtime("made", tmp_path, [1], python=python).logits.shape == (1, 5)


def test_drive_needs_nothing_of_fewbits():
    text = Path(drive.__file__).read_text()
    files = [Path(drive.__file__), *Path(drive.__file__).parent.glob("*_driver.py")]
    assert len(files) > 4
    for file in files:
        assert "import fewbits" not in file.read_text()
        assert "from fewbits" not in file.read_text()
    assert "from fewbits" not in text


FAILURES = [
    (
        "REQUIREMENTS = ('nosuchpackage==1.2', 'numpy')",
        "missing: nosuchpackage.*pip install nosuchpackage==1.2 numpy",
    ),
    (
        "REQUIREMENTS = ()\ndef logits(m, t):\n    import nosuchmodule",
        "missing: No module named 'nosuchmodule'",
    ),
    ("REQUIREMENTS = ()\ndef logits(m, t):\n    raise ValueError('two\\nlines')", "ValueError: two"),
    ("REQUIREMENTS = ()\ndef logits(m, t):\n    return [[1.0], [2.0]]", r"another shape: found \[2, 1\]"),
    ("REQUIREMENTS = ()\ndef logits(m, t):\n    import os; os.abort()", "killed by SIGABRT"),
    ("REQUIREMENTS = (", "exit status 1: SyntaxError"),
]


@pytest.mark.parametrize(("text", "said"), FAILURES)
def test_failures_name_what_is_wrong(driver, tmp_path, text, said):
    driver(text)
    with pytest.raises(RuntimeFailedError, match=said):
        run_runtime("made", tmp_path, [1])


def test_a_driver_without_a_loop_does_not_generate(driver, tmp_path):
    driver(WORKS.split("def generate")[0])

    assert run_runtime("made", tmp_path, [1]).generated == ()
    with pytest.raises(RuntimeFailedError, match="no loop that generates"):
        run_runtime("made", tmp_path, [1], count=1)


def test_a_runtime_that_hangs_is_ended_with_its_processes(driver, tmp_path):
    driver(
        "REQUIREMENTS = ()\ndef logits(m, t):\n    import subprocess\n"
        f"    subprocess.run(['sh', '-c', 'sleep 30; touch {tmp_path}/late'])"
    )
    with pytest.raises(RuntimeFailedError, match="no answer in 2 s"):
        run_runtime("made", tmp_path, [1], timeout=2)


def test_unknown_runtimes_and_pythons_are_refused(tmp_path):
    with pytest.raises(RuntimeFailedError, match=r"unknown runtime.*transformers"):
        run_runtime("tensorrt", tmp_path, [1])
    with pytest.raises(RuntimeFailedError, match="no Python at"):
        find_python(tmp_path / "nothing")


def test_the_error_line_is_found_among_others(capfd, tmp_path):
    path = tmp_path / "made_driver.py"
    path.write_text("REQUIREMENTS = ('nosuchpackage',)")
    np.savez(tmp_path / "request.npz", tokens=np.array([1]))

    assert drive.main(str(path), "model", str(tmp_path / "request.npz"), str(tmp_path / "a.npz")) == 1
    said = capfd.readouterr().err
    assert json.loads(said.splitlines()[-1]) == {
        "fewbits": "missing", "message": "nosuchpackage", "requirements": ["nosuchpackage"],
    }  # fmt: skip
    assert process._told(said + "more noise\n") is not None
    assert not (tmp_path / "a.npz").exists()
