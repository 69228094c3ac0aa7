"""`fewbits serve` in a process of its own, for as long as a benchmark asks it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def server_process(model: Path, options: Sequence[str]) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """A server on a free port: its process, the model's name and its address, up to /v1.

    Raises:
        SystemExit: it didn't start; what it said is in the message.
    """
    command = [sys.executable, "-m", "fewbits", "serve", str(model), "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            line = process.stderr.readline()
            found = re.match(r"(.+) at (\S+/v1),", line)
            if found is None:
                raise SystemExit(line + process.stderr.read())
            yield process, found[1], found[2]
        finally:
            process.kill()
