"""Running a runtime's driver in a Python of its own, and what can go wrong there."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fewbits.errors import RuntimeFailedError
from fewbits.runtimes import drive
from fewbits.runtimes.registry import driver_of, requirements_of

DEFAULT_TIMEOUT = 1800.0
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
# Of another Python: its packages are its own.
_OURS = ("PYTHONPATH", "PYTHONHOME")


@dataclass(frozen=True)
class Answer:
    """What a runtime computed.

    Attributes:
        logits: float32 [T, V].
        generated: greedy continuation, at most as many tokens as were asked for.
        versions: of the packages that the driver names.
        arithmetic: dtype of activations there.
        rounds_activations: whether it rounds them where the artifact says so.
        kv_cache: how it keeps keys and values, as ``--kv-cache`` names it; "" as the artifact says.
        seconds: wall time, loading included.
    """

    logits: npt.NDArray[np.float32]
    generated: tuple[int, ...]
    versions: Mapping[str, str]
    arithmetic: str
    rounds_activations: bool
    kv_cache: str
    seconds: float


def run_runtime(
    name: str,
    model: Path,
    tokens: Sequence[int],
    *,
    python: str | Path | None = None,
    count: int = 0,
    timeout: float = DEFAULT_TIMEOUT,
) -> Answer:
    """Load a model in a runtime and run one sequence.

    Args:
        name: of the runtime.
        model: what it loads.
        tokens: T of them.
        python: interpreter of the environment that the runtime is installed in; None for this one.
        count: tokens to generate besides.
        timeout: seconds.

    Raises:
        RuntimeFailedError: no such interpreter, packages missing (with the command that installs them), an exception
            of the runtime, or no answer in time.
    """
    began = time.monotonic()
    interpreter = find_python(python)
    with tempfile.TemporaryDirectory(prefix="fewbits-") as folder:
        request, written = Path(folder) / "request.npz", Path(folder) / "answer.npz"
        np.savez(request, tokens=np.array(tokens, np.int64), count=np.int64(count))
        command = [interpreter, "-P", drive.__file__, str(driver_of(name)), str(model.resolve())]
        status, said = _run([*command, str(request), str(written)], _environment(python), timeout, name)
        if status != 0 or not written.exists():
            raise _failure(name, interpreter, model, status, said)
        with np.load(written) as arrays:
            about = json.loads(str(arrays["about"]))
            logits, generated = arrays["logits"], tuple(int(token) for token in arrays["generated"])
    if logits.ndim != 2 or len(logits) != len(tokens):
        raise RuntimeFailedError(
            f"{name} gave logits of another shape",
            found=list(logits.shape),
            allowed=f"[{len(tokens)}, vocabulary]",
        )
    seconds = round(time.monotonic() - began, 3)
    return Answer(
        logits,
        generated,
        about["versions"],
        str(about["arithmetic"]),
        bool(about["rounds_activations"]),
        str(about["kv_cache"]),
        seconds,
    )


def find_python(python: str | Path | None) -> str:
    """The interpreter at a path, in an environment's folder, or on the search path; None: this one.

    Raises:
        RuntimeFailedError: there is none.
    """
    if python is None:
        return sys.executable
    path = Path(python).expanduser()
    for candidate in (path, path / "bin" / "python"):
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return str(candidate.absolute())  # not resolved: an environment's python is a link
    if found := shutil.which(str(python)):
        return found
    raise RuntimeFailedError(
        f"no Python at {python}", found="nothing that can be run",
        allowed="an interpreter, or the folder of a virtual environment",
        action=f"Run: python3 -m venv {shlex.quote(str(python))}",
    )  # fmt: skip


def _environment(python: str | Path | None) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if python is None or k not in _OURS}
    return {**inherited, **{k: v for k, v in _OFFLINE.items() if k not in os.environ}}


def _run(
    command: Sequence[str], environment: Mapping[str, str], timeout: float, name: str
) -> tuple[int, str]:
    """Exit status, and standard error."""
    process = subprocess.Popen(  # noqa: S603  an interpreter that the user named, and our own files
        command, env=dict(environment), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        errors="replace", start_new_session=True,
    )  # fmt: skip
    try:
        _, said = process.communicate(timeout=timeout)
    except BaseException as error:
        _end(process)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise RuntimeFailedError(
                f"{name} gave no answer in {timeout:.0f} s",
                action="Give it fewer --tokens or a longer --timeout",
            ) from error
        raise
    return process.returncode, said


def _end(process: subprocess.Popen[str]) -> None:
    """With the processes that it started, except on Windows."""
    if sys.platform == "win32":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)


def _failure(name: str, interpreter: str, model: Path, status: int, said: str) -> RuntimeFailedError:
    told = _told(said)
    if told is None:
        last = next(
            (line for line in reversed(said.splitlines()) if line.strip()), "nothing on standard error"
        )
        ended = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return RuntimeFailedError(f"{name} ended without an answer", found=f"{ended}: {last[:300]}")
    if told["fewbits"] == "missing":
        return RuntimeFailedError(
            f"{name} isn't installed whole for {interpreter}", found=f"missing: {told['message']}",
            action=f"Run: {install_command(name, interpreter, told.get('requirements'))}",
        )  # fmt: skip
    if told["fewbits"] == "unable":
        return RuntimeFailedError(f"{name} can't do this here", found=told["message"])
    return RuntimeFailedError(f"{name} can't run {model}", found=str(told["message"])[:600])


def _told(said: str) -> dict[str, Any] | None:
    """The line in which drive.py says what failed."""
    for line in reversed(said.splitlines()):
        if line.startswith('{"fewbits"'):
            found: dict[str, Any] = json.loads(line)
            return found
    return None


def install_command(
    name: str, interpreter: str | None = None, requirements: Sequence[str] | None = None
) -> str:
    """The pip command that installs a runtime as it was tested."""
    wanted = " ".join(shlex.quote(r) for r in requirements or requirements_of(name))
    return f"{shlex.quote(interpreter or 'python')} -m pip install {wanted}"
