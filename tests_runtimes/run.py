"""Makes the environment of every runtime, runs it, and writes what was measured: `make test-runtimes`.

    python tests_runtimes/run.py [ROW…] [--model DIR --text FILE] [--tokens N] [--environment ROW=DIR]…

For each row (a folder here with formats.txt), by the Python that has fewbits:

    .venv-runtimes/ROW/                 its environment, by requirements.txt; rows with the same share one
    .venv-runtimes/artifacts/MODEL/     what artifacts.py makes; the row's own tests are run on it
    fewbits verify …                    for every format, in that environment

Then benchmarks/results/targets.json has the figures and docs/targets.md is made from it. What is done is kept: the same
command goes on where it stopped, and does again what another version of the packages or another model asks for.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
RESULTS = ROOT / "benchmarks" / "results" / "targets.json"
KEPT = ROOT / ".venv-runtimes"
os.environ["FEWBITS_EFFORT"] = "fast"
RANDOM = "random-llama"


# Folders here are called like packages, and must not be taken for them.
sys.path = [entry for entry in sys.path if Path(entry).resolve() != HERE.resolve()]


def load_artifacts() -> ModuleType:
    """artifacts.py."""
    spec = importlib.util.spec_from_file_location("artifacts", HERE / "artifacts.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def all_rows() -> list[str]:
    return sorted(path.parent.name for path in HERE.glob("*/formats.txt"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", help=f"default: all of {', '.join(all_rows())}")
    parser.add_argument("--model", type=Path, help="default: the small random one of the tests")
    parser.add_argument("--name", help="of the model in the results; default: its folder's")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the figures go")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--environment", action="append", default=[], metavar="ROW=DIR")
    parser.add_argument("--kept", type=Path, default=KEPT, help="environments and artifacts")
    parser.add_argument(
        "--format", action="append", default=[], help="only these; default: all of formats.txt"
    )
    parser.add_argument("--without-tests", action="store_true", help="measure alone")
    options = parser.parse_args()
    environments = dict(pair.split("=", 1) for pair in options.environment)
    failed = []
    for row in options.rows or all_rows():
        python = environment(row, options.kept, environments.get(row))
        failed += run_row(row, python, options)
    subprocess.run([sys.executable, ROOT / "docs" / "generate.py"], check=True)
    for line in failed:
        print("FAILED:", line)
    return 1 if failed else 0


def environment(row: str, kept: Path, given: str | None) -> Path:
    """The row's interpreter, in an environment that is made now if it isn't there."""
    if given is not None:
        return Path(given) / "bin" / "python"
    wanted = (HERE / row / "requirements.txt").read_text()
    first = next(name for name in all_rows() if (HERE / name / "requirements.txt").read_text() == wanted)
    folder = kept / first
    done = folder / "installed.txt"
    if done.exists() and done.read_text() == wanted:
        return folder / "bin" / "python"
    print("making", folder)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # torch first and alone: what follows then takes the one that is there.
    for torch in (line for line in wanted.splitlines() if line.startswith("torch==")):
        subprocess.run([*pip, torch], check=True)
    subprocess.run([*pip, "--requirement", HERE / row / "requirements.txt"], check=True)
    done.write_text(wanted)
    return folder / "bin" / "python"


def run_row(row: str, python: Path, options: argparse.Namespace) -> list[str]:
    """Measure every format of a row and run its tests; what failed."""
    import fewbits
    from fewbits.errors import FewbitsError

    artifacts = load_artifacts()
    name = options.name or (options.model.name if options.model else RANDOM)
    work = options.kept / "artifacts" / name
    model = options.model or artifacts.small_model(work / "model")
    lines = [line.split() for line in (HERE / row / "formats.txt").read_text().splitlines()]
    lines = [line for line in lines if not options.format or line[1] in options.format]
    failed = []
    for container, fmt in lines:
        folder = work / row / fmt
        if not (folder / "model").exists():
            folder.mkdir(parents=True, exist_ok=True)
            fewbits.quantize(model, folder / "model", to=container, format=fmt)
        try:
            found = measured(row, fmt, folder, model, name, python, options)
        except FewbitsError as error:
            failed.append(f"{row} {fmt}: {error}")
            continue
        if not found["passed"]:
            failed.append(f"{row} {fmt}: KL {found['kl_between']:.2e} between the runtime and our weights")
    if not options.without_tests:
        failed += tests_of(row, python, work, model, options)
    return failed


def measured(
    row: str, fmt: str, folder: Path, model: Path, name: str, python: Path, options: argparse.Namespace
) -> dict[str, object]:
    """Figures of one artifact in its runtime: those in the results if they are of the same, else made now."""
    from fewbits.targets.registry import target_of
    from fewbits.verification import verify

    container = next(
        line.split()[0]
        for line in (HERE / row / "formats.txt").read_text().splitlines()
        if line.split()[1] == fmt
    )
    runtime = next(r.driver for r in target_of(container).runtimes if r.row == row)
    identity = fingerprint(folder / "model", HERE / row / "requirements.txt", options)
    rows = results(options.results, name, model)["models"][name]["rows"]
    old = next((r for r in rows if (r["row"], r["format"]) == (row, fmt)), None)
    if old is not None and old["identity"] == identity:
        return old
    result = verify(
        folder / "model", model, runtime=runtime, python=python, text=options.text, tokens=options.tokens
    )
    figures = asdict(result)
    for machine in ("artifact", "against", "python"):
        del figures[machine]
    found = {"row": row, "format": fmt, "bytes": size_of(folder / "model"), "identity": identity, **figures}
    data = results(options.results, name, model)  # read again: another run may have added rows meanwhile
    others = [r for r in data["models"][name]["rows"] if (r["row"], r["format"]) != (row, fmt)]
    ordered = sorted([*others, found], key=lambda r: (r["row"], -r["bytes"], r["format"]))
    data["models"][name]["rows"] = ordered
    options.results.write_text(json.dumps(data, indent=1) + "\n")
    print(f"{row} {fmt}\n{result.describe()}\n", flush=True)
    return found


def results(path: Path, name: str, model: Path) -> dict[str, Any]:
    """The figures so far, with a place for this model's."""
    data = json.loads(path.read_text()) if path.exists() else {"models": {}}
    data["models"].setdefault(name, {"original_bytes": size_of(model), "rows": []})
    return data


def fingerprint(artifact: Path, requirements: Path, options: argparse.Namespace) -> str:
    """Of what decides the figures."""
    from fewbits.checkpoint.content_hash import file_digest

    digest = hashlib.sha256(requirements.read_bytes())
    for path in sorted(p for p in artifact.rglob("*") if p.is_file()):
        digest.update(file_digest(path).encode())
    digest.update(f"{options.tokens} {file_digest(options.text) if options.text else ''}".encode())
    return digest.hexdigest()[:16]


def size_of(path: Path) -> int:
    """Bytes of the files that hold weights."""
    files = (
        [p for p in path.rglob("*") if p.is_file() and "tokenizer" not in p.name] if path.is_dir() else [path]
    )
    return sum(file.stat().st_size for file in files)


def tests_of(row: str, python: Path, work: Path, model: Path, options: argparse.Namespace) -> list[str]:
    """Run the row's own tests in its environment, unless they passed with the same artifacts."""
    artifacts = load_artifacts()
    tokens = artifacts.tokens_of(model, options.text, options.tokens)
    original = None
    folders = []
    for line in (HERE / row / "formats.txt").read_text().splitlines():
        container, fmt = line.split()
        folders.append(work / row / fmt)
        if not (folders[-1] / "expected.npz").exists():
            original = artifacts.logits_of(model, tokens, "float") if original is None else original
            artifacts.make(folders[-1], model, container, fmt, tokens, original)
    state = hashlib.sha256()
    for path in [*(HERE / row).glob("*.*"), *(folder / "model" / "config.json" for folder in folders)]:
        state.update(path.read_bytes() if path.exists() else b"")
    passed = work / row / "tests-passed.txt"
    if passed.exists() and passed.read_text() == state.hexdigest():
        return []
    # With another root, pytest would make modules called like the folders, which are called like packages.
    root = ["-c", HERE / "pytest.ini", "--rootdir", ROOT]
    done = subprocess.run(
        [python, "-P", "-m", "pytest", "-q", "-s", *root, HERE / row],
        env={**os.environ, "FEWBITS_ARTIFACTS": str(work)} | {"PYTHONPATH": ""}, check=False,
    )  # fmt: skip
    if done.returncode:
        return [f"{row}: its tests"]
    passed.write_text(state.hexdigest())
    return []


if __name__ == "__main__":
    raise SystemExit(main())
