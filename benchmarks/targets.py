"""What a model in each runtime's container is worth there: bytes, and KL divergence as the runtime computes it.

    python benchmarks/targets.py MODEL [ROW…] --text TEST.txt --calibration TRAIN.txt --work DIR [--peers]

For every line of tests_runtimes/ROW/measured.txt: `fewbits quantize`, for containers that only the runtime's library
writes `fewbits export` in the row's environment, and `fewbits verify`, by commands that stand in the results. Lines
with peer=NAME are asked for by --peers: benchmarks/targets_peers/NAME.py makes them with the runtime's own tools from
the same model, and what it made is run alike.

Rows go to benchmarks/results/targets.json as they are made, from which docs/targets.md is written. What is there with
the same artifact, text and packages is kept; artifacts stay in DIR. FEWBITS_CACHE keeps the statistics of calibration.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests_runtimes" / "runner"))

import numpy as np  # noqa: E402
from cases import ROWS, Case, read_cases  # noqa: E402
from environments import environment, installed_versions, with_sources  # noqa: E402

from fewbits.checkpoint.content_hash import file_digest  # noqa: E402
from fewbits.checkpoint.source import open_checkpoint  # noqa: E402
from fewbits.evaluation.language_model import load_language_model  # noqa: E402
from fewbits.export.converters import find_converter  # noqa: E402
from fewbits.runtimes.process import run_runtime  # noqa: E402
from fewbits.targets.registry import target_of  # noqa: E402
from fewbits.verification import predictions_apart, run_original  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "targets.json"
PEERS = Path(__file__).parent / "targets_peers"
# Peers whose packages are those of fewbits[dev]; the others run in the row's environment.
PEERS_HERE = ("genai_builder",)
TOKENS = 256


def main() -> int:
    options = parse_arguments()
    failed = []
    for row in options.rows or sorted(path.parent.name for path in ROWS.glob("*/measured.txt")):
        python = environment(row, options.environments)
        for job in jobs(row, options):
            try:
                measure(job, python, options)
            except subprocess.CalledProcessError as error:
                failed.append(f"{row} {job.case.name}, {job.method}: {error.stderr[-800:]}")
                print("FAILED:", failed[-1], flush=True)
    subprocess.run([sys.executable, ROOT / "docs" / "generate.py"], check=True)
    return 1 if failed else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="Hugging Face directory")
    parser.add_argument("rows", nargs="*", help="of tests_runtimes; default: all that have a measured.txt")
    parser.add_argument("--name", help="of the model in the results; default: its folder's")
    parser.add_argument("--text", type=Path, required=True, help="to measure on")
    parser.add_argument("--calibration", type=Path, required=True, help="to calibrate on")
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made")
    parser.add_argument("--environments", type=Path, default=ROOT / ".venv-runtimes")
    parser.add_argument("--effort", nargs="*", default=["balanced"], help="fewbits' efforts")
    parser.add_argument("--peers", action="store_true", help="what the runtimes' own tools make, too")
    parser.add_argument("--format", action="append", default=[], help="only these")
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.name = options.name or options.model.name
    return options


@dataclass(frozen=True)
class Job:
    """One row of the table.

    Attributes:
        row: folder of tests_runtimes.
        case: what is in the container.
        method: "fewbits EFFORT", or PEER[:RECIPE].
        runtime: driver that runs it; "" where nothing on this system does.
    """

    row: str
    case: Case
    method: str
    runtime: str

    @property
    def key(self) -> dict[str, Any]:
        """What tells it from other rows."""
        named = {"row": self.row, "container": self.case.container, "format": self.case.format}
        return {**named, "settings": list(self.case.settings), "method": self.method}

    def folder(self, work: Path) -> Path:
        """Of its artifact, which several runtimes may run."""
        return work / self.method.removeprefix("fewbits ") / self.case.container / self.case.name


@dataclass(frozen=True)
class Step:
    """A program that makes something.

    Attributes:
        python: that runs it.
        arguments: of that Python.
        shown: the command as a reader types it.
        output: what is there once it has ended well.
    """

    python: Path
    arguments: tuple[str | Path, ...]
    shown: str
    output: Path


def jobs(row: str, options: argparse.Namespace) -> list[Job]:
    """All of a row that are asked for."""
    found = []
    for case in read_cases(ROWS / row / "measured.txt"):
        if options.format and case.format not in options.format:
            continue
        runtime = next(r.driver for r in target_of(case.container).runtimes if r.row == row)
        peer = case.value("peer")
        if peer is None:
            found += [Job(row, case, f"fewbits {effort}", runtime) for effort in options.effort]
        elif options.peers:
            found.append(Job(row, case, peer, runtime))
    return found


def measure(job: Job, python: Path, options: argparse.Namespace) -> None:
    """Make, run and write down one row, unless it is there."""
    made = make(job, python, options)
    artifact = job.folder(options.work) / "model"
    identity = identity_of(artifact, installed_versions(job.row, python), options)
    before = [
        r for r in read_results(options)["models"][options.name]["rows"] if job.key.items() <= r.items()
    ]
    if before and before[0]["identity"] == identity:
        return
    look = run_foreign if job.case.value("peer") else run_ours if job.runtime else weigh
    found = {
        **job.key, "identity": identity, "bytes": size_of(artifact), "seconds_to_make": made["seconds"],
        **look(job, artifact, python, options),
    }  # fmt: skip
    found["commands"] = [*made["commands"], *found["commands"]]
    data = read_results(options)  # read again: another run may have added rows meanwhile
    others = [r for r in data["models"][options.name]["rows"] if not job.key.items() <= r.items()]
    data["models"][options.name]["rows"] = sorted([*others, found], key=order)
    options.results.write_text(json.dumps(data, indent=1) + "\n")
    divergence = found.get("kl_runtime", found.get("kl_weights"))
    print(
        f"{job.row} {job.case.name}, {job.method}: KL {divergence:.5f}, {found['bytes']:,} bytes", flush=True
    )


def order(row: dict[str, Any]) -> tuple[Any, ...]:
    """Where a row stands in the table."""
    return row["row"], row["container"], row["format"], row["settings"], row["method"]


def make(job: Job, python: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The artifact, unless it is there: by which commands, and in how many seconds."""
    folder = job.folder(options.work)
    steps = (peer_steps if job.case.value("peer") else fewbits_steps)(job, folder, python, options)
    note, shown = folder / "made.json", [step.shown for step in steps]
    before = json.loads(note.read_text()) if note.exists() else {}
    if before.get("commands") == shown and (folder / "model").exists():
        return before
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    for step in steps:
        if not step.output.exists():  # else an earlier run got this far
            called(step.python, step.arguments, with_sources())
    found = {"commands": shown, "seconds": round(time.monotonic() - began, 1)}
    note.write_text(json.dumps(found, indent=1) + "\n")
    return found


def fewbits_steps(job: Job, folder: Path, python: Path, options: argparse.Namespace) -> list[Step]:
    """Quantizing, and converting where only the runtime's library writes the container."""
    case, effort = job.case, job.method.removeprefix("fewbits ")
    converted = find_converter(case.container) is not None
    written = folder / ("weights" if converted else "model")
    to = case.container + ("-weights" if converted else "")
    chosen = ["--to", to, "--format", case.format, "--effort", effort]
    for setting, option in (("pin", "--pin"), ("kv-cache", "--kv-cache")):
        chosen += [word for value in case.values(setting) for word in (option, value)]
    text = [] if effort == "fast" else ["--calibration", options.calibration.name]
    real = [] if effort == "fast" else ["--calibration", options.calibration]
    shown = " ".join(["fewbits quantize MODEL", "WEIGHTS" if converted else "OUT", *chosen, *text])
    command = ("-m", "fewbits", "quantize", options.model, written, *chosen, *real)
    steps = [Step(Path(sys.executable), (*command, "--threads", str(options.threads)), shown, written)]
    if converted:
        command = ("-m", "fewbits", "export", written, folder / "model", "--to", case.container)
        shown = f"fewbits export WEIGHTS OUT --to {case.container}"
        steps.append(Step(python, command, shown, folder / "model"))
    return steps


def peer_steps(job: Job, folder: Path, python: Path, options: argparse.Namespace) -> list[Step]:
    """One script of targets_peers."""
    name, _, recipe = job.method.partition(":")
    script = PEERS / f"{name}.py"
    chosen = ["--format", job.case.format, *(["--recipe", recipe] if recipe else []), "--calibration"]
    shown = " ".join(
        ["python", str(script.relative_to(ROOT)), "MODEL OUT", *chosen, options.calibration.name]
    )
    command = (script, options.model, folder / "model", *chosen, options.calibration)
    command = (*command, "--threads", str(options.threads))
    interpreter = Path(sys.executable) if name in PEERS_HERE else python
    return [Step(interpreter, command, shown, folder / "model")]


def run_ours(job: Job, artifact: Path, python: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What `fewbits verify` says: in the row's environment, where only the runtime's library reads what it wrote."""
    here = python if find_converter(job.case.container) else Path(sys.executable)
    command = ["-m", "fewbits", "verify", artifact, "--against", options.model, "--runtime", job.runtime]
    command += ["--python", python, "--text", options.text, "--tokens", str(options.tokens), "--json"]
    found: dict[str, Any] = json.loads(called(here, command, with_sources(), allowed=(0, 1)))
    for machine in ("artifact", "against", "python", "container"):
        del found[machine]
    shown = f"fewbits verify OUT --against MODEL --runtime {job.runtime} --python ENV"
    return {**found, "commands": [f"{shown} --text {options.text.name} --tokens {options.tokens}"]}


def run_foreign(job: Job, artifact: Path, python: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The same of what fewbits didn't make: there are no numbers of ours to compare with."""
    original = run_original(str(options.model), options.text.read_text(encoding="utf-8"), options.tokens)
    answer = run_runtime(job.runtime, artifact, original.ids, python=python)
    logits = answer.logits[:, : original.logits.shape[1]]
    apart = predictions_apart(original.logits, logits, original.ids)
    return {
        "runtime": job.runtime, "versions": dict(answer.versions), "arithmetic": answer.arithmetic,
        "kl_runtime": apart.kl_mean, "kl_runtime_error": apart.kl_mean_error,
        "top1_original": apart.top1_agreement, "tokens": apart.tokens, "text": options.text.name, "commands": [],
    }  # fmt: skip


def weigh(job: Job, artifact: Path, python: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What our weights cost where the runtime can't run; the export has compared what it wrote with them."""
    original = run_original(str(options.model), options.text.read_text(encoding="utf-8"), options.tokens)
    model = load_language_model(open_checkpoint(artifact.with_name("weights")), "float")
    apart = predictions_apart(
        original.logits, np.concatenate(list(model.logits(original.ids, 0))), original.ids
    )
    return {
        "runtime": "", "versions": installed_versions(job.row, python), "kl_weights": apart.kl_mean,
        "top1_original": apart.top1_agreement, "tokens": apart.tokens, "text": options.text.name, "commands": [],
    }  # fmt: skip


def called(
    python: Path, arguments: Any, environment_variables: dict[str, str], allowed: tuple[int, ...] = (0,)
) -> str:
    """Standard output of a program.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    words = [str(word) for word in (python, *arguments)]
    done = subprocess.run(words, env=environment_variables, capture_output=True, text=True, check=False)
    if done.returncode not in allowed or not (done.stdout.strip() or allowed == (0,)):
        raise subprocess.CalledProcessError(done.returncode, words, done.stdout, done.stderr)
    return done.stdout


def read_results(options: argparse.Namespace) -> dict[str, Any]:
    """The figures so far, with a place for this model's."""
    data = json.loads(options.results.read_text()) if options.results.exists() else {"models": {}}
    data["models"].setdefault(options.name, {"original_bytes": size_of(options.model), "rows": []})
    return data


def identity_of(artifact: Path, versions: dict[str, str], options: argparse.Namespace) -> str:
    """Of what decides the figures."""
    digest = hashlib.sha256(json.dumps(versions).encode())
    for path in sorted(p for p in (artifact, *artifact.rglob("*")) if p.is_file()):
        digest.update(file_digest(path).encode())
    digest.update(f"{options.tokens} {file_digest(options.text)}".encode())
    return digest.hexdigest()[:16]


def size_of(path: Path) -> int:
    """Bytes of the files that hold weights."""
    files = [p for p in (path, *path.rglob("*")) if p.is_file() and "tokenizer" not in p.name]
    return sum(file.stat().st_size for file in files)


if __name__ == "__main__":
    raise SystemExit(main())
