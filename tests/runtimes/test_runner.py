"""What `make test-runtimes` does before a runtime is asked anything."""

import subprocess
import sys
from pathlib import Path

RUNNER = Path(__file__).parents[2] / "tests_runtimes" / "runner"
BUILT = "import importlib.util as u; print(u.find_spec('fewbits._native').origin)"


def test_another_python_imports_this_checkout_and_what_was_compiled_of_it(monkeypatch):
    monkeypatch.syspath_prepend(str(RUNNER))
    from environments import NATIVE, with_sources

    # Without site-packages, as in a runtime's environment, an editable installation's hook isn't there.
    done = subprocess.run(
        [sys.executable, "-S", "-c", BUILT], env=with_sources(), capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()).resolve() == NATIVE.resolve()
