"""Worker processes of the calibrated efforts."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from fewbits.pipeline.calibrated import worker_pool

MAIN = """
import os, time
from fewbits.pipeline.calibrated import worker_pool

if __name__ == "__main__":
    with worker_pool(2, 1) as pool:
        pids = [pool.submit(os.getpid) for _ in range(8)]
        print(*{future.result() for future in pids}, flush=True)
        time.sleep(600)
"""


def running(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_workers_end_when_their_run_is_killed(tmp_path):
    (tmp_path / "main.py").write_text(MAIN)
    process = subprocess.Popen([sys.executable, str(tmp_path / "main.py")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert workers
    assert all(running(pid) for pid in workers)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    end = time.monotonic() + 60
    while any(running(pid) for pid in workers) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(running(pid) for pid in workers)


def test_workers_have_the_threads_that_they_are_given():
    before = os.environ.get("OPENBLAS_NUM_THREADS")
    with worker_pool(1, 3) as pool:
        assert pool.submit(os.getenv, "OPENBLAS_NUM_THREADS").result() == "3"
    assert os.environ.get("OPENBLAS_NUM_THREADS") == before
