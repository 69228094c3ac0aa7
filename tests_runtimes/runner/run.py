"""Makes the environment of every runtime and runs its tests there: `make test-runtimes`.

    python tests_runtimes/runner/run.py [ROW…] [--environment ROW=DIR]… [--kept DIR]

For each row (a folder with formats.txt), by the Python that has fewbits:

    .venv-runtimes/ROW/            its environment, by requirements.txt; rows with the same share one
    .venv-runtimes/artifacts/      what artifacts.py makes; the row's own tests are run on it

Then benchmarks/results/runtimes.json says what ran, and docs/targets.md is made from it and from what
benchmarks/targets.py measured. What is done is kept: the same command goes on where it stopped, and does again what
other packages, another version of fewbits or other tests ask for.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from artifacts import code_digest, make_row
from cases import ROWS, read_cases, row_names
from environments import SOURCES, environment, installed_versions, with_sources

ROOT = ROWS.parent
RESULTS = ROOT / "benchmarks" / "results" / "runtimes.json"
KEPT = ROOT / ".venv-runtimes"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", help=f"default: all of {', '.join(row_names())}")
    parser.add_argument("--environment", action="append", default=[], metavar="ROW=DIR")
    parser.add_argument("--kept", type=Path, default=KEPT, help="environments and artifacts")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    given = dict(pair.split("=", 1) for pair in options.environment)
    failed = []
    for row in options.rows or row_names():
        try:
            python = environment(row, options.kept, given.get(row))
            found = run_row(row, python, options.kept / "artifacts", options.results)
        except subprocess.CalledProcessError as error:  # it has said why
            print(f"{row}: {Path(error.cmd[0]).name} ended with {error.returncode}", flush=True)
            failed.append(row)
            continue
        print(
            f"{row}: {found['passed']} of {found['tests']} tests passed, {found['skipped']} skipped",
            flush=True,
        )
        failed += [row] * (found["passed"] + found["skipped"] < found["tests"] or not found["tests"])
    subprocess.run([sys.executable, ROOT / "docs" / "generate.py"], check=True)
    if failed:
        print("FAILED:", ", ".join(failed))
    return 1 if failed else 0


def run_row(row: str, python: Path, work: Path, results: Path) -> dict[str, Any]:
    """Run a row's tests in its environment, unless they passed with the same of everything; what is known of it."""
    cases = read_cases(ROWS / row / "formats.txt")
    make_row(row, cases, work, python)
    state = row_state(row, python)
    before = read_results(results)["rows"].get(row)
    if before and before["state"] == state and before["passed"] + before["skipped"] == before["tests"]:
        return before
    began = time.monotonic()
    counts = run_tests(row, python, work)
    found = {
        "state": state, "versions": installed_versions(row, python), **counts,
        "formats": formats_of(case for case in cases if not case.refused),
        "refused": formats_of(case for case in cases if case.refused),
        "date": time.strftime("%Y-%m-%d"), "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip
    data = read_results(results)
    data["rows"] = dict(sorted((data["rows"] | {row: found}).items()))
    results.write_text(json.dumps(data, indent=1) + "\n")
    return found


def formats_of(cases: Any) -> dict[str, list[str]]:
    """Container -> its formats."""
    found: dict[str, list[str]] = {}
    for case in cases:
        found.setdefault(case.container, []).append(" ".join((case.format, *case.settings)))
    return found


def read_results(path: Path) -> dict[str, Any]:
    """What ran so far."""
    return json.loads(path.read_text()) if path.exists() else {"rows": {}}


def row_state(row: str, python: Path) -> str:
    """Digest of what decides whether the tests pass."""
    state = hashlib.sha256(code_digest().encode())
    drivers = (SOURCES / "fewbits" / "runtimes").glob("*_driver.py")
    for path in sorted([*(ROWS / row).glob("*.*"), *drivers, ROWS / "conftest.py"]):
        state.update(path.read_bytes())
    state.update(json.dumps(installed_versions(row, python)).encode())
    return state.hexdigest()


def run_tests(row: str, python: Path, work: Path) -> dict[str, int]:
    """How many tests there are, passed and were skipped."""
    report = work / row / "tests.xml"
    report.unlink(missing_ok=True)
    # With another root, pytest would make modules called like the folders, which are called like packages.
    root = ["-c", ROWS / "pytest.ini", "--rootdir", ROOT]
    subprocess.run(
        [python, "-P", "-m", "pytest", "-q", "-s", *root, "--junitxml", report, ROWS / row],
        env={**with_sources(), "FEWBITS_ARTIFACTS": str(work)}, check=False,
    )  # fmt: skip
    if not report.exists():
        return {"tests": 0, "passed": 0, "skipped": 0}
    suites = list(ElementTree.parse(report).iter("testsuite"))
    tests, bad, skipped = (
        sum(int(suite.get(key, 0)) for suite in suites for key in keys)
        for keys in (("tests",), ("failures", "errors"), ("skipped",))
    )
    return {"tests": tests, "passed": tests - bad - skipped, "skipped": skipped}


if __name__ == "__main__":
    raise SystemExit(main())
