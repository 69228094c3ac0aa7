"""Running a script with the kernels of one instruction set."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def printed_on(isa, script):
    """What a script prints after the name of its instruction set; None is the processor's own choice.

    Skips where the processor lacks the one asked for.
    """
    # Scripts import modules of tests, which import others from this folder.
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = {**os.environ, "PYTHONPATH": path, **({"FEWBITS_ISA": isa} if isa else {})}
    ran = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    if isa and ran[0] != isa:
        pytest.skip(f"this processor has no {isa}")
    return ran[1:]
